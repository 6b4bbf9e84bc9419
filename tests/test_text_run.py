"""Runs on text: what is read, what is learned, going on to the same bits, and what is refused."""

import json
import math
import sys

import numpy as np
import pytest
from models import same_bits

from fastformer.analysis.loading import load_text_run
from fastformer.cli import main
from fastformer.data.text import Crops, Documents, TextTask, windows
from fastformer.training import token_file
from fastformer.training.callbacks import TrainingCallbacks
from fastformer.training.config import TrainingConfig
from fastformer.training.presets import PRESETS
from fastformer.training.run_directory import RunDirectory
from fastformer.training.runs import resume_run, train_run
from fastformer.training.text_run import TextSettings, new_text_settings

TEXT = "the quick brown fox jumps over the lazy dog. " * 60
SIZES = [
    "--embed-dim=16", "--num-heads=2", "--num-layers=1", "--ffn-dim=32", "--max-seq-len=16",
    "--crops=60", "--batch-size=20", "--learning-rate=1e-2",
]  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Where token files are kept, for one test."""
    place = tmp_path / "cache"
    monkeypatch.setattr(token_file, "cache_directory", lambda: place)
    return place


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    return file


def train(text, out, *words):
    given = {word.partition("=")[0] for word in words}
    sizes = [word for word in SIZES if word.partition("=")[0] not in given]
    return main(["train", "text", str(text), "--out", str(out), "--json", *sizes, *words])


def result_of(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.smoke
def test_a_text_is_learned_and_gone_on_with(text, tmp_path, capsys):
    assert train(text, tmp_path / "run", "--epochs=8") == 0
    result = result_of(capsys)
    assert result["validation_loss"] < 0.6 * math.log(28)
    bits = result["validation_loss"] / math.log(2)
    assert result["bits_per_byte"] == pytest.approx(bits)
    assert result["tokens_per_second"] == pytest.approx(16 * result["examples_per_second"])
    assert main(["generate", str(tmp_path / "run"), "--prompt", "the qu", "--tokens=9"]) == 0
    first = capsys.readouterr().out
    assert first.startswith("the qu") and len(first) == len("the qu") + 9 + 1
    assert main(["generate", str(tmp_path / "run"), "--prompt", "the qu", "--tokens=9"]) == 0
    assert capsys.readouterr().out == first
    words = ["generate", str(tmp_path / "run"), "--prompt=the", "--tokens=5", "--temperature=0"]
    assert main([*words, "--json"]) == 0
    found = result_of(capsys)
    model, settings = load_text_run(tmp_path / "run")
    tokenizer = settings.tokenizer
    assert found["text"] == tokenizer.decode(found["tokens"]) and len(found["tokens"]) == 5
    assert model.config.vocab_size == tokenizer.vocab_size == len(set(TEXT))
    # The decoder's own defaults, not those of the digit task's encoder.
    assert (model.config.norm, model.config.positions) == ("pre", "learned")


def test_options_of_draws_and_texts_longer_than_the_model(text, tmp_path, capsys):
    run = str(tmp_path / "run")
    assert train(text, run, "--epochs=1") == 0
    capsys.readouterr()
    words = ["generate", run, "--prompt", TEXT[:40], "--tokens=50", "--top-p=0.9", "--min-p=0.01"]
    assert main([*words, "--repetition-penalty=1.1", "--top-k=9"]) == 0
    whole = capsys.readouterr().out
    assert main(["generate", run, "--tokens=3"]) == 0
    assert len(capsys.readouterr().out) == 1 + 3 + 1, "a space comes first where none is told"
    assert whole.startswith(TEXT[:40]) and len(whole) == 40 + 50 + 1
    added = whole[40:-1]
    ending = added[20:22]
    stopped = added[: added.index(ending)]
    assert main([*words, "--repetition-penalty=1.1", "--top-k=9", "--stop", ending]) == 0
    assert capsys.readouterr().out == TEXT[:40] + stopped + "\n"


def test_several_texts_are_written_and_a_long_one_is_told_once(text, tmp_path, capsys):
    run = str(tmp_path / "run")
    assert train(text, run, "--epochs=1") == 0
    capsys.readouterr()
    words = ["generate", run, "--prompt=the", "--tokens=40", "--seed=5"]
    assert main([*words, "--num-samples=3"]) == 0
    out, err = capsys.readouterr()
    assert err.count("The text may become longer than the 16 tokens") == 1
    texts = out.split("\n---\n")
    assert len(texts) == len(set(texts)) == 3
    assert main([*words, "--num-samples=3", "--json"]) == 0
    found = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
    assert [f"the{one}" for one in found] == [*texts[:2], texts[2].removesuffix("\n")]
    assert main([*words]) == 0
    assert capsys.readouterr().out.removesuffix("\n") == texts[0], "the same without others"
    assert main([*words, "--num-samples=2", "--temperature=0"]) == 2
    assert "need a temperature" in capsys.readouterr().err
    assert main(["generate", run, "--prompt=the", "--tokens=3"]) == 0
    assert capsys.readouterr().err == ""


def test_a_stop_is_looked_for_in_the_text_and_not_in_its_tokens(text, tmp_path, capsys):
    run = str(tmp_path / "run")
    assert train(text, run, "--epochs=1", "--tokenizer=words") == 0
    capsys.readouterr()
    words = ["generate", run, "--prompt=the", "--tokens=9"]
    assert main(words) == 0
    whole = capsys.readouterr().out.removesuffix("\n")
    stop = whole[9:13]  # of no whole words
    assert main([*words, "--stop", stop]) == 0
    assert capsys.readouterr().out == whole[: whole.index(stop, 3)] + "\n"


def test_bytes_are_tokens_too(tmp_path, capsys):
    file = tmp_path / "text.txt"
    file.write_text("naïve 文字 " * 200)
    assert train(file, tmp_path / "run", "--epochs=1", "--tokenizer=bytes") == 0
    result = result_of(capsys)
    assert result["bits_per_byte"] == pytest.approx(result["validation_loss"] / math.log(2))
    assert main(["generate", str(tmp_path / "run"), "--prompt", "文", "--tokens=4"]) == 0


def test_words_are_tokens_too(text, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(text, run, "--epochs=2", "--tokenizer=words", "--vocab-size=6") == 0
    bits = result_of(capsys)
    assert bits["bits_per_byte"] < bits["validation_loss"] / math.log(2) / 4, "of words' bytes"
    _, settings = load_text_run(run)
    assert settings.tokenizer.words == ("the", ".", "brown", "dog", "fox")
    assert main(["generate", str(run), "--prompt=a brown", "--tokens=2", "--temperature=0"]) == 0
    written = capsys.readouterr().out
    assert written.startswith("a brown ") and len(written.split()) == 4
    assert main(["generate", str(run), "--tokens=1"]) == 0
    assert capsys.readouterr().out.startswith("the "), "the most frequent word"


def test_parts_of_words_are_tokens_too(text, tmp_path, capsys):
    run = tmp_path / "run"
    words = "--epochs=1", "--tokenizer=bpe", "--vocab-size=280"
    assert train(text, run, *words) == 0
    first = result_of(capsys)
    assert (run / "tokenizer.json").read_bytes()[:1] == b"{"
    # A run's file, for another run.
    tokenizer = f"--tokenizer={run / 'tokenizer.json'}"
    assert train(text, tmp_path / "again", "--epochs=1", tokenizer) == 0
    assert result_of(capsys)["validation_loss"] == first["validation_loss"]
    assert (tmp_path / "again/tokenizer.json").read_bytes() == (run / "tokenizer.json").read_bytes()
    assert main(["generate", str(run), "the", "--tokens=3"]) == 0
    assert capsys.readouterr().out.startswith("the")
    capsys.readouterr()
    assert train(text, tmp_path / "less", "--tokenizer=bpe", "--vocab-size=255") == 2
    assert "vocab_size must be an integer >= 256, got 255" in capsys.readouterr().err
    assert train(text, tmp_path / "other", tokenizer, "--vocab-size=300") == 2
    assert "vocab_size must be 280, which the tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "less").exists() and not (tmp_path / "other").exists()


def test_bpe_without_its_library_says_what_to_install(text, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    assert train(text, run, "--epochs=1", "--tokenizer=bpe", "--vocab-size=280") == 0
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for words in (["generate", str(run)], ["train", "text", str(text), "--tokenizer=bpe"]):
        assert main(words) == 2
        message = capsys.readouterr().err
        assert message.startswith("fastformer: BPE needs the library tokenizers: pip install")


def test_a_run_begins_with_the_weights_of_another_text(text, tmp_path, capsys):
    first, other = tmp_path / "first", tmp_path / "other.txt"
    assert train(text, first, "--epochs=1") == 0
    other.write_text(text.read_text()[::-1])
    capsys.readouterr()
    assert train(other, tmp_path / "words", "--from", str(first), "--tokenizer=words") == 2
    assert f"its tokens are others; give this run its tokenizer: --tokenizer {first}" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "words").exists()
    begun = ["train", "text", str(other), "--from", str(first), "--out", str(tmp_path / "run")]
    begun += ["--tokenizer", str(first / "tokenizer.json"), "--epochs=1", "--crops=20", "--json"]
    assert main(begun) == 0
    shown = capsys.readouterr()
    assert f"beginning with the weights of {first}" in shown.err
    assert "the test may look too good" in shown.err
    assert (
        json.loads(shown.out)["parameters"]
        == json.loads((first / "result.json").read_text())["parameters"]
    )


def test_a_run_keeps_its_tokenizer_in_a_file_of_its_own(text, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(text, run, "--epochs=1") == 0
    file, config = run / "tokenizer.json", (run / "config.toml").read_text()
    assert json.loads(file.read_bytes())["characters"] == "".join(sorted(set(TEXT)))
    assert "tokenizer_digest" in config and "characters = " not in config
    content = file.read_bytes()
    file.write_bytes(content.replace(b"a", b"A"))
    for command in (["train", "--resume", str(run), "--epochs=2"], ["generate", str(run)]):
        capsys.readouterr()
        assert main(command) == 2
        message = capsys.readouterr().err
        assert f"{file} is not the tokenizer that the run began with" in message
    file.unlink()
    assert main(["generate", str(run)]) == 2
    assert f"cannot read the run's tokenizer, {file}: No such file" in capsys.readouterr().err
    file.write_bytes(content)
    assert main(["train", "--resume", str(run), "--epochs=2"]) == 0
    assert file.read_bytes() == content
    # Another run in its place has nothing of it.
    assert train(text, run, "--epochs=1", "--tokenizer=bytes", "--overwrite") == 0
    assert json.loads(file.read_bytes())["kind"] == "bytes"


def test_several_seeds_keep_the_tokenizer_to_go_on_with(text, tmp_path, capsys):
    assert train(text, tmp_path / "runs", "--epochs=1", "--seeds=2") == 0
    names = {path.name for path in (tmp_path / "runs").iterdir()}
    assert names == {"seeds.json", "tokenizer.json", "seed-42", "seed-43"}
    assert main(["train", "--resume", str(tmp_path / "runs"), "--epochs=2", "--json"]) == 0
    assert result_of(capsys)["seeds"] == [42, 43]
    file = tmp_path / "runs" / "tokenizer.json"
    file.write_bytes(b"{}")
    assert main(["train", "--resume", str(tmp_path / "runs"), "--epochs=3"]) == 2
    assert f"{file} is not the tokenizer" in capsys.readouterr().err


def test_a_run_that_goes_on_has_the_bits_of_one_that_never_stopped(text, tmp_path, capsys):
    assert train(text, tmp_path / "whole", "--epochs=3", "--dropout=0.1") == 0
    assert train(text, tmp_path / "parts", "--epochs=1", "--dropout=0.1") == 0
    assert main(["train", "--resume", str(tmp_path / "parts"), "--epochs=3", "--json"]) == 0
    found, expected = (RunDirectory.open(tmp_path / n).latest().tensors for n in ("parts", "whole"))
    assert same_bits(dict(found), dict(expected))
    capsys.readouterr()


NAMES = [f"{a}{b}{c}" for a in "abc" for b in ("ri", "la", "no") for c in ("a", "us", "en")]


@pytest.fixture
def names(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("\n".join(NAMES * 2))
    return file


@pytest.mark.smoke
def test_documents_are_learned_with_their_ends_and_gone_on_with(names, tmp_path, capsys):
    words = "--documents=lines", "--max-seq-len=8", "--validation-share=0.2", "--dropout=0.1"
    assert train(names, tmp_path / "whole", "--epochs=40", *words) == 0
    assert result_of(capsys)["validation_loss"] < 0.8 * math.log(15)
    run = str(tmp_path / "whole")
    found = set()
    for seed in range(8):
        assert main(["generate", run, "--seed", str(seed), "--temperature=0.5"]) == 0
        found.add(capsys.readouterr().out)
    assert all(2 < len(name) < 9 and name.count("\n") == 1 for name in found)
    assert main(["generate", run, "--prompt=ari", "--json"]) == 0
    added = result_of(capsys)["text"]
    assert len(added) < 5 and "\n" not in added
    # From the middle of an epoch on, and with names that are cut.
    settings = TextSettings.from_run(RunDirectory.open(tmp_path / "whole"))
    tables = settings.tables()
    tables["training"] |= {"epochs": 3, "checkpoint_every": 2}
    tables["model"]["max_seq_len"] = 5
    short = TextSettings.from_tables(tables, tmp_path / "whole")
    train_run(short, tmp_path / "expected", TrainingCallbacks())
    with pytest.raises(KeyboardInterrupt):
        train_run(short, tmp_path / "parts", StopAt(5))
    resume_run(tmp_path / "parts", TrainingCallbacks())
    parts, expected = (RunDirectory.open(tmp_path / n).latest() for n in ("parts", "expected"))
    assert same_bits(dict(parts.tensors), dict(expected.tensors))


class StopAt(TrainingCallbacks):
    def __init__(self, step):
        self.step = step

    def stepped(self, step, *others):
        if step == self.step:
            raise KeyboardInterrupt


def test_no_document_is_on_both_sides(names, tmp_path):
    task = TextTask(documents="lines", validation_share=0.3)
    model = {"embed_dim": 16, "num_heads": 2, "num_layers": 1, "ffn_dim": 32, "max_seq_len": 8}
    chosen = []
    for seed in (0, 1):
        own = {"training": TrainingConfig(), "seed": seed}
        settings = new_text_settings((names,), task, model, **own)
        found = token_file.open_tokens(settings.task, settings.tokenizer)
        source, validation = settings.split(found)
        documents, tokenizer = source.documents, settings.tokenizer
        seen = pieces_of(source.documents.batch(np.arange(source.size))[0], tokenizer)
        unseen = pieces_of(validation.inputs, tokenizer)
        assert len(seen) == len(NAMES) * 2 - 16 and len(unseen) == 16
        assert not {*seen} & {*unseen} and {*seen, *unseen} == {f"\n{name}" for name in NAMES}
        chosen.append(unseen)
        # All of it in an epoch, each sequence once, and never a target across a border.
        batches = list(source.batches(3, 1, 7, 0))
        assert sum(len(batch) for batch, _ in batches) == source.size
        ends = sum(
            int((targets == settings.tokenizer.encode("\n")).sum()) for _, targets in batches
        )
        assert ends == len(documents.starts)
        last = list(source.batches(3, 1, 7, 2))
        assert same_bits(last[0][0].tokens, batches[2][0].tokens)
    assert chosen[0] != chosen[1]


def pieces_of(batch, tokenizer):
    ends = zip(batch.offsets, batch.offsets[1:], strict=False)
    return [tokenizer.decode(batch.tokens[a:b]) for a, b in ends]


def test_samples_are_shown_and_change_nothing(text, names, tmp_path, capsys):
    for name, words in (
        ("text", [text, "--sample-tokens=9"]), ("quiet", [text, "--sample-tokens=0"]),
        ("names", [names, "--documents=lines", "--max-seq-len=8"]),
    ):  # fmt: skip
        file, *others = words
        assert train(file, tmp_path / name, "--epochs=2", "--dropout=0.1", *others) == 0
        lines = capsys.readouterr().err.splitlines()
        samples = [line for line in lines if line.startswith("sample: ")]
        assert len(samples) == (0 if name == "quiet" else 2)
        assert name != "text" or all(len(line) == len("sample: ") + 9 for line in samples)
    found, expected = (RunDirectory.open(tmp_path / n).latest() for n in ("text", "quiet"))
    assert same_bits(dict(found.tensors), dict(expected.tensors))
    assert found.metadata == expected.metadata


def test_a_document_begins_with_what_ends_one_and_is_cut_where_it_is_long():
    tokens, ending = np.array([1, 2, 3, 4, 8, 9, 5, 8, 9, 8, 9]), np.array([8, 9])
    documents = Documents(tokens, np.array([0, 6, 9]), np.array([6, 9, 11]), ending, 4)
    assert documents.size == 4 and documents.lengths.tolist() == [4, 3, 4, 3]
    batch, targets = documents.batch(np.arange(4))
    assert batch.tokens.tolist() == [8, 9, 1, 2, 3, 4, 8, 8, 9, 5, 8, 8, 9, 8]
    assert targets.tolist() == [-1, 1, 2, 3, 4, 8, 9, -1, 5, 8, 9, -1, 8, 9]
    assert documents.batch(np.array([2, 1]))[0].tokens.tolist() == [8, 9, 5, 8, 3, 4, 8]
    # Without an ending, a document of one token asks for nothing.
    bare = Documents(tokens, np.array([0, 1, 2]), np.array([1, 2, 9]), np.zeros(0, np.int64), 4)
    assert bare.size == 2 and bare.lengths.tolist() == [4, 2]
    batch, targets = bare.batch(np.arange(2))
    assert (batch.tokens.tolist(), targets.tolist()) == ([3, 4, 8, 9, 5, 8], [4, 8, 9, 5, 8, 9])


@pytest.mark.parametrize("name", PRESETS["text"])
def test_presets_of_text_are_options_that_a_user_could_give(names, tmp_path, capsys, name):
    small = "--epochs=1", "--num-layers=1", "--accumulation-steps=1", "--warmup-steps=0"
    small += ("--validation-share=0.3",)
    assert train(names, tmp_path / "run", "--preset", name, *small) == 0
    settings = TextSettings.from_run(RunDirectory.open(tmp_path / "run"))
    overridden = {word.partition("=")[0] for word in (*SIZES, *small)}
    for key, value in PRESETS["text"][name].items():
        if f"--{key.replace('_', '-')}" in overridden:
            continue
        part = next(
            p for p in (settings.task, settings.model, settings.training) if hasattr(p, key)
        )
        assert getattr(part, key) == value, key


def test_files_are_documents_too(tmp_path, capsys):
    files = [tmp_path / f"{n}.txt" for n in range(12)]
    for n, file in enumerate(files):
        file.write_text(f"file {n % 10} " * 5)
    words = ["--documents=files", "--separator=<|endoftext|>", "--epochs=1"]
    others = map(str, files[1:])
    assert train(files[0], tmp_path / "run", *words, *others) == 0
    capsys.readouterr()
    assert main(["generate", str(tmp_path / "run"), "--tokens=5", "--json"]) == 0
    assert result_of(capsys)["prompt"] == ""


def test_the_best_epoch_has_the_lowest_loss(text, tmp_path, capsys):
    assert train(text, tmp_path / "run", "--epochs=6", "--learning-rate=0.3") == 0
    best = result_of(capsys)["best_epoch"]
    losses = [
        record["validation_loss"] for record in RunDirectory.open(tmp_path / "run").read_metrics()
    ]
    assert best == 1 + int(np.argmin(losses))


def test_a_text_that_has_changed_is_not_gone_on_with(text, tmp_path, capsys):
    assert train(text, tmp_path / "run", "--epochs=1") == 0
    text.write_text(TEXT.upper())
    assert main(["train", "--resume", str(tmp_path / "run"), "--epochs=2"]) == 2
    assert "has changed since the run began" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        (b"caf\xe9 " * 99, (), "is not UTF-8: byte 3 is 0xe9"),
        (b"", (), "is empty"),
        (b"too short", (), "need 18 tokens each, a crop of max_seq_len=16"),
        (TEXT.encode(), ("--validation-share=0.001",), "need 18 tokens each"),
        (TEXT.encode(), ("--tokenizer=byte",), "did you mean 'bytes'?; or the path of a tokenizer"),
        (TEXT.encode(), ("--tokenizer=text.txt",), "or the path of a tokenizer.json"),
        (TEXT.encode(), ("--vocab-size=9",), "vocab_size must be 28, which the tokenizer"),
        (TEXT.encode(), ("--tokenizer=words", "--vocab-size=1"), "must be an integer >= 2, got 1"),
        (TEXT.encode(), ("--documents=line",), "did you mean 'lines'?"),
        (TEXT.encode(), ("--documents=separated",), "'separated' needs the separator"),
        (TEXT.encode(), ("--separator=x",), "separator is for documents='separated', or 'files'"),
        (TEXT.encode(), ("--documents=files",), "has 1 documents (files): too few different ones"),
        (b"a\na\na", ("--documents=lines",), "3 documents (lines): too few different ones"),
        (TEXT.encode(), ("--pooling=mean",), "Unknown option: --pooling"),
        (TEXT.encode(), ("--examples=5",), "Unknown option: --examples"),
        (TEXT.encode(), ("--crops=0",), "crops must be an integer >= 1"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(tmp_path, capsys, content, words, message):
    file = tmp_path / "text.txt"
    file.write_bytes(content)
    assert train(file, tmp_path / "run", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_files_are_needed(tmp_path, capsys):
    assert main(["train", "text", "--out", str(tmp_path / "run")]) == 2
    assert "give at least one text file" in capsys.readouterr().err
    assert main(["train", "text", str(tmp_path / "none.txt")]) == 2
    assert "cannot read" in capsys.readouterr().err
    assert main(["train", "digits", "text.txt"]) == 2
    assert "Unused Tokens: ['text.txt']" in capsys.readouterr().err


def test_other_commands_say_what_to_use(text, tmp_path, capsys):
    run = str(tmp_path / "run")
    assert train(text, run, "--epochs=1") == 0
    for command in (["predict", run, "x"], ["evaluate", run], ["attention", run, "x"]):
        assert main(command) == 2
        assert "use fastformer generate" in " ".join(capsys.readouterr().err.split())
    for words, message in (
        (["--prompt", "Z"], "never seen the character 'Z'"),
        (["--prompt", ""], "the prompt is empty"),
        (["--temperature=-1"], "temperature must be a finite number >= 0"),
        (["--top-p=2"], "top_p must be"),
    ):
        assert main(["generate", run, *words]) == 2
        assert message in capsys.readouterr().err


def test_crops_are_of_the_text_and_depend_on_seed_and_number_alone():
    tokens = np.arange(1000)
    crops = Crops(tokens, 16, 60)
    batch, targets = crops.batch(3, 5, 4)
    rows = batch.tokens.reshape(4, 16)
    assert (np.diff(rows, axis=1) == 1).all() and (targets.reshape(4, 16) == rows + 1).all()
    again, _ = crops.batch(3, 5, 4)
    assert same_bits(again.tokens, batch.tokens)
    assert not same_bits(crops.batch(3, 6, 4)[0].tokens, batch.tokens)
    assert not same_bits(crops.batch(4, 5, 4)[0].tokens, batch.tokens)
    starts = np.concatenate([crops.batch(0, n, 100)[0].tokens[::16] for n in range(100)])
    assert starts.min() == 0 and starts.max() == 1000 - 17


def test_windows_are_the_text_end_to_end():
    batch, targets = windows(np.arange(40), 16, 1000)
    assert batch.tokens.tolist() == list(range(39)) and targets.tolist() == list(range(1, 40))
    assert np.diff(batch.offsets).tolist() == [16, 16, 7]
    assert windows(np.arange(40), 16, 20)[0].num_tokens == 20
