"""Runs on tables of a person's own: texts with labels, and questions with answers."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import mistake_of, object_of, text_of
from hypothesis import given, settings
from hypothesis import strategies as st

import fastformer as ff
from fastformer.analysis.evaluation import evaluate_classes
from fastformer.analysis.loading import load_run
from fastformer.cli import main
from fastformer.data.example_files import read_pairs
from fastformer.data.labelled import LabelledTask, LabelledText, split_labelled
from fastformer.data.splitting import held_out, part_sizes
from fastformer.data.tokenizers import WordTokenizer
from fastformer.errors import RunError
from fastformer.training.labelled_run import new_labelled_settings
from fastformer.training.run_directory import RunDirectory

SMALL = ["--embed-dim=16", "--num-heads=2", "--num-layers=1", "--ffn-dim=32", "--epochs=6"]
TOPICS = {
    "weather": "rain snow fog wind storm sun cloud frost".split(),
    "food": "bread soup fish salt butter cream garlic basil".split(),
    "money, banks": "bonds shares profit bank rates loan stock funds".split(),
}
LABELS = tuple(sorted(TOPICS))


def labelled_rows() -> list[tuple[str, str]]:
    """Return sentences of which each has three words of its label, some of them twice."""
    random = np.random.default_rng(0)
    rows = []
    for label, words in TOPICS.items():
        for _ in range(90):
            chosen = " and ".join(random.choice(words, 3))
            rows.append((f"there is {chosen}", label))
    return [rows[place] for place in random.permutation(len(rows))]


def write_csv(path: Path, header: str, rows: list[tuple[str, str]]) -> Path:
    lines = [f'{first},"{second}"' for first, second in rows]
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("table") / "t.csv", "text,topic", labelled_rows())


@pytest.fixture(scope="module")
def run(table: Path) -> Path:
    out = table.parent / "run"
    words = ["--learning-rate=0.01", "--label-column=topic", "--max-seq-len=16"]
    assert main(["train", "classify", str(table), "--out", str(out), *SMALL, *words]) == 0
    return out


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sums")
    rows = [{"question": f"{a}+{b}", "answer": a + b} for a in range(12) for b in range(12)]
    (place / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["train", "answers", str(place / "sums.jsonl"), "--out", str(place / "run"), *SMALL]
    assert main(words) == 0
    return place / "run"


def test_labels_are_learned_and_told_one_by_one(
    run: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = object_of(capsys, "evaluate", run)
    assert found["test_accuracy"] > 0.9 and found["trained_on"] == 0
    assert tuple(found["per_class"]) == LABELS
    counts = np.array(found["confusion"]["counts"])
    assert found["confusion"]["labels"] == list(LABELS)
    assert counts.sum() == found["test_examples"]
    for place, label in enumerate(LABELS):
        score = found["per_class"][label]
        assert score["examples"] == counts[place].sum()
        assert score["recall"] == counts[place, place] / counts[place].sum()
        assert score["precision"] == counts[place, place] / counts[:, place].sum()
    result = json.loads((run / "result.json").read_text())
    assert result["test_accuracy"] == found["test_accuracy"]
    assert result["per_class"] == {n: s["recall"] for n, s in found["per_class"].items()}
    out = text_of(capsys, "evaluate", run)
    assert "precision" in out and "money, banks" in out and "correct class (down)" in out
    whole = object_of(capsys, "evaluate", run, "--data", table)
    assert whole["test_examples"] == len(labelled_rows()) > whole["trained_on"] > 0
    assert whole["trained_on"] + whole["never_trained_on"] == whole["test_examples"]


def test_no_input_is_on_two_sides(run: Path) -> None:
    settings = load_run(run).settings
    parts = settings.parts  # type: ignore[union-attr]
    sides = [
        {tuple(one.ids()) for one in part} for part in (parts.train, parts.validation, parts.test)
    ]
    assert all(sides) and not any(a & b for a, b in itertools.combinations(sides, 2))
    assert len(parts.train) > len(sides[0])  # repeats are trained on as often as they are there
    assert len(parts.test) == len(sides[2])
    assert {one.label for one in parts.test} == set(LABELS)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("xyz")), min_size=1),
    seed=st.integers(0, 5),
)
def test_any_texts_are_split_without_leaks(rows: list[tuple[str, str]], seed: int) -> None:
    tokenizer = WordTokenizer(tuple("abcdefgh"))
    texts = [LabelledText(text, label, tokenizer, 9) for text, label in rows]
    try:
        train, validation, test, _ = split_labelled(texts, LabelledTask(), seed)
    except ValueError as error:
        assert "too few examples" in str(error)
        return
    sides = [{one.text for one in part} for part in (train, validation, test)]
    assert all(sides) and not any(a & b for a, b in itertools.combinations(sides, 2))
    assert set().union(*sides) == {text for text, _ in rows}


@given(st.integers(0, 60), st.floats(0.01, 0.5), st.floats(0.01, 0.49))
def test_no_part_is_empty(count: int, validation: float, test: float) -> None:
    sizes = part_sizes(count, validation, test)
    assert sizes == (0, 0) if count < 3 else min(*sizes, count - sum(sizes)) >= 1
    apart = held_out(range(count), [0] * count, [sizes] if count else [], 1, "a test")
    assert [list(apart.values()).count(part) for part in ("validation", "test")] == list(sizes)


def test_a_text_is_asked_and_looked_into(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = object_of(capsys, "predict", run, "there is snow and fog and zebras")
    assert found["prediction"] == "weather" and found["expected"] is found["correct"] is None
    assert sum(share for _, share in found["top"]) == pytest.approx(1)
    out = text_of(capsys, "predict", run, "butter and basil")
    assert out.startswith("butter and basil = food") and "right" not in out.splitlines()[0]
    seen = object_of(capsys, "attention", run, "snow and zebras")
    assert seen["tokens"] == ["snow", "and", "[UNK]"]
    roles = object_of(capsys, "attention", run)
    assert "itself" in json.dumps(roles) and "the largest number" not in json.dumps(roles)
    assert "the text ' ' has no token" in mistake_of(capsys, "predict", run, " ")


def test_words_that_nobody_has_seen_are_counted(
    run: Path, sums: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, note in (("xyzzy", "(one word that"), ("xyzzy xyz", "(2 words that")):
        first = text_of(capsys, "predict", run, words).splitlines()[0]
        assert first.endswith(f"{note} the model has never seen)")
    assert object_of(capsys, "predict", run, "snow xyzzy")["unknown"] == 1
    assert "never seen" not in text_of(capsys, "predict", sums, "1+2")


def test_a_run_begins_with_the_weights_of_another_table(
    run: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "classify", table, "--from", run, "--epochs=1", "--seed=7"]
    words += ["--tokenizer", run / "tokenizer.json", "--out", tmp_path / "run", "--json"]
    assert main([str(word) for word in words]) == 0
    shown = capsys.readouterr()
    assert f"beginning with the weights of {run}" in shown.err
    assert "may be test examples here" in shown.err  # another seed, another split
    assert json.loads(shown.out)["test_accuracy"] == 1.0


def test_words_that_were_never_trained_on_mean_nothing(run: Path) -> None:
    loaded = load_run(run)
    table = loaded.model.embedding.weight.value
    assert not table[0].any() and table[1:].any(axis=1).any()
    logits = [
        loaded.model.forward(ff.pack([loaded.predictor.read(text).ids()]))
        for text in ("snow quagga", "snow zzz")
    ]
    np.testing.assert_array_equal(*logits)


def test_the_model_of_a_run_is_loaded_with_its_words_and_labels(run: Path, sums: Path) -> None:
    for directory, backend in ((run, "numba"), (run, "reference"), (sums, "numba")):
        model, loaded = ff.load(directory, backend=backend), load_run(directory)
        assert model.ops.name == backend and model.tokenizer == loaded.settings.tokenizer
        for name, array in loaded.model.state_dict().items():
            np.testing.assert_array_equal(model.state_dict()[name], array)
        assert (model.labels == LABELS) == (directory == run)
    (directory / "checkpoints/best.safetensors").rename(directory / "kept")
    with pytest.raises(RunError, match="checkpoint"):
        ff.load(directory)
    (directory / "kept").rename(directory / "checkpoints/best.safetensors")
    with pytest.raises(RunError, match="is not a run of fastformer"):
        ff.load(directory.parent)
    with pytest.raises(ValueError, match="backend must be one of"):
        ff.load(directory, backend="torch")


def test_pictures_and_pages_show_labels(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["evaluate", str(run), "--picture", str(tmp_path / "c.png")]) == 0
    found = object_of(capsys, "report", run, "--out", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert found["missing"] == []
    assert all(part in page for part in ("money, banks", "precision", "Right class (row)"))
    tokens = object_of(capsys, "embeddings", run, "--out", tmp_path / "pictures")
    assert tokens["tokens"][0] == "[UNK]" and "and" in tokens["norms"]
    assert len(tokens["pictures"]) == len(list((tmp_path / "pictures").iterdir())) == 5
    text_of(capsys, "embeddings", run)
    assert "embedding.weight" in text_of(capsys, "inspect", run, "--points", 3)
    assert main(["plot", str(run), "--out", str(tmp_path / "p.png")]) == 0


def test_a_stopped_run_on_a_table_has_the_bits_of_a_whole_one(
    run: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = [*SMALL[:4], "--epochs=3", "--learning-rate=0.01", "--max-seq-len=16"]
    assert main(["train", "classify", str(table), "--out", str(out), *words]) == 0
    object_of(capsys, "train", "--resume", out, "--epochs", 6)
    for name in ("train_loss", "validation_loss"):
        own = [record[name] for record in RunDirectory.open(out).read_metrics()]
        assert own == [record[name] for record in RunDirectory.open(run).read_metrics()]
    table.write_text(table.read_text().replace("snow", "hail"))
    complaint = mistake_of(capsys, "train", "--resume", out, "--epochs", 7)
    assert "have changed since the run began" in complaint


def test_seeds_of_a_table(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("train", "classify", table, "--out", tmp_path / "s", *SMALL[:4], "--epochs=1")
    found = object_of(capsys, *words, "--seeds", 2)
    assert set(found["class_spread"]) == set(LABELS) and "per_operation" not in found
    assert "accuracy by class" in text_of(capsys, "train", "--resume", tmp_path / "s")


def test_balance_lets_a_rare_label_count_as_much(table: Path) -> None:
    task = LabelledTask(balance=True)
    settings = new_labelled_settings([table], task, {}, training=training())
    parts = settings.parts
    weights = settings.class_weights(parts)
    assert weights is not None
    counts = [sum(one.label == label for one in parts.train) for label in settings.labels]
    np.testing.assert_allclose(weights * counts, len(parts.train) / len(counts))
    plain = new_labelled_settings([table], LabelledTask(), {}, training=training())
    assert plain.class_weights(parts) is None


def training() -> Any:
    from fastformer.training.config import TrainingConfig

    return TrainingConfig()


def test_rare_labels_and_long_texts_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*labelled_rows(), ("a b c", "seldom")]
    table = write_csv(tmp_path / "t.csv", "sentence,label", rows)
    words = ["--epochs=1", "--max-seq-len=6", *SMALL[:4]]
    assert main(["train", "classify", str(table), "--out", str(tmp_path / "run"), *words]) == 0
    told = capsys.readouterr().err
    assert "are trained on but not tested: seldom" in told
    assert "270 of 271 texts are longer than the 6 tokens" in told
    assert "texts are there again" in told


def test_answers_are_written_and_counted_as_a_whole(
    sums: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = json.loads((sums / "result.json").read_text())
    found = object_of(capsys, "evaluate", sums)
    assert found["test_accuracy"] == result["test_accuracy"]
    assert found["test_loss"] == pytest.approx(result["test_loss"], rel=1e-6)
    assert result["test_examples"] == 14
    asked = object_of(capsys, "predict", sums, "3+4")
    assert asked["prediction"].isdecimal() and asked["expected"] is None
    seen = object_of(capsys, "attention", sums, "3+4")
    assert seen["tokens"][:4] == ["3", "+", "4", "[ANSWER]"] and seen["readout"] == 3
    told = mistake_of(capsys, "predict", sums, "3*4")
    assert "the model has never seen the character '*', at place 2" in told
    assert main(["evaluate", str(sums), "--picture", "x.png"]) == 0
    out, err = capsys.readouterr()
    assert "test accuracy" in out and "there is no picture" in err and not Path("x.png").exists()
    loaded = load_run(sums)
    answers, _ = loaded.predictor.answers(loaded.tests)
    for one, answer in zip(loaded.tests[:4], answers, strict=False):
        assert loaded.predictor.predict(str(one)).prediction == answer
    assert "14 inputs never seen" in text_of(capsys, "evaluate", sums)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("t.csv", "text,label\na,b,c\n", "line 2: it has 3 columns, and the first line has 2"),
        ("t.csv", "text,label\n", "has no examples"),
        ("t.csv", "", "is empty"),
        ("t.csv", b"text,label\ncaf\xe9,b\n", "is not UTF-8: byte 14 is 0xe9"),
        ("t.csv", "text,label\nx,y\nz,y\n", "2 to 10,000 different labels, got 1, such as 'y'"),
        ("t.csv", "a,b,c\n1,2,3\n", "none of the columns a, b, c is called text or sentence"),
        ("t.csv", "text,label\nfoo,\n", "line 2, column 'label': it is empty"),
        ("t.csv", 'text,label\n"foo,bar\n', "line 2: no CSV"),
        ("t.csv", "text\nfoo\n", "line 1: the first line must name two columns"),
        ("t.csv", "text;label\nfoo;bar\n", "here it looks like ';'"),
        ("t.csv", "text,text\nfoo,bar\n", "line 1: a column is named twice"),
        ("t.csv", "text,label\na,x\nb,y\nc,x\n", "too few examples to split"),
        ("t.tsv", "text\tlabel\na\tb\tc\n", "line 2: it has 3 columns"),
        ("t.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', "line 2: column 'label' is mis"),
        ("t.jsonl", '{"text": "a", "label": 1}\n{"text": "b"\n', "line 2, column 13: no JSON"),
        ("t.jsonl", '{"text": {}, "label": 1}\n', "line 1, column 'text': must be a text"),
        ("t.jsonl", "[1]\n", "line 1: it must be a JSON object, got '[1]'"),
    ],
)
def test_a_bad_table_is_named_and_nothing_is_written(
    name: str,
    content: str | bytes,
    complaint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    assert complaint in mistake_of(capsys, "train", "classify", file, "--out", tmp_path / "run")
    assert list(tmp_path.iterdir()) == [file]


def test_mistakes_of_options_and_of_other_files(
    run: Path, sums: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", tmp_path / "run")
    for words, complaint in (
        (("classify", *out), "give at least one file of examples"),
        (("classify", table, "--text-column=x", *out), "there is no column 'x'; there are text, t"),
        (("classify", table, "--pooling=none", *out), "pooling must be 'first', 'mean' or 'last'"),
        (("classify", table, "--test-fraction=1", *out), "test_fraction must be"),
        (("answers", table, "--max-seq-len=5", *out), "line 2: the question with its answer has"),
    ):
        assert complaint in mistake_of(capsys, "train", *words)
    assert not (tmp_path / "run").exists()
    other = write_csv(tmp_path / "o.csv", "topic,text", [("art", "snow")])
    assert "line 2: the label 'art' is none that was trained on: food, money" in mistake_of(
        capsys, "evaluate", run, "--data", other
    )
    assert "was not trained on text" in mistake_of(capsys, "generate", run)


def test_columns_are_found_by_their_names_or_places(tmp_path: Path) -> None:
    usual = (("text",), ("label",))
    for header, columns, first in (
        ("label,text", ("", ""), "b"),
        ("kind,what", ("", ""), "a"),
        ("kind,what", ("what", ""), "b"),
        ("kind,what", ("", "kind"), "b"),
        ("kind,text", ("", ""), "b"),
    ):
        pairs, chosen = read_pairs(
            write_csv(tmp_path / "t.csv", header, [("a", "b")]), columns, usual
        )
        assert (pairs[0].first, len(set(chosen))) == (first, 2)


def test_scores_of_classes() -> None:
    scores = evaluate_classes(list("aabbc"), list("abbbb"), "abcd")
    assert (scores.exact.correct, scores.exact.total) == (3, 5)
    a, b = scores.per_class["a"], scores.per_class["b"]
    assert (a.recall.accuracy, a.f1) == (1.0, pytest.approx(2 / 3))
    assert a.precision is not None and a.precision.accuracy == 0.5
    assert b.f1 == pytest.approx(2 * 2 / (4 + 2)) and set(scores.per_class) == {"a", "b"}
    never = evaluate_classes(["a", "a"], ["a", "b"], "ab")
    assert never.per_class["b"].precision is None and never.per_class["b"].f1 == 0
    assert never.macro_f1 == pytest.approx((2 / 3 + 0) / 2)
    with pytest.raises(ValueError, match="there is no class 'z'"):
        evaluate_classes(["z"], ["a"], "ab")
    with pytest.raises(ValueError, match="at least one right class"):
        evaluate_classes([], [], "ab")
