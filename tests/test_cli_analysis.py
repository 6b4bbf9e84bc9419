"""Evaluate, attention and embeddings from the command line, on a model that trains in a moment."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import mistake_of, object_of, text_of
from runs import one_thread

from fastformer.analysis.attention import attention_weights
from fastformer.analysis.embeddings import embedding_report
from fastformer.analysis.loading import load_run
from fastformer.cli import main
from fastformer.data.expressions import OPERATIONS
from fastformer.data.vocabulary import DIGIT_TOKENS, NamedTokens

__all__ = ["one_thread"]  # a fixture that every test here uses

TINY = "--examples 400 --embed-dim 16 --num-heads 2 --num-layers 2 --ffn-dim 32 --epochs 2"
EXPRESSION = "Max ( 5 3 9 )"


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a small model, for the tests that need a finished run."""
    directory = tmp_path_factory.mktemp("analysis") / "run"
    assert main(["train", "--out", str(directory), *TINY.split()]) == 0
    return directory


def test_evaluate_counts_the_answers_that_predict_gives(
    run_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = object_of(capsys, "evaluate", run_directory)
    loaded = load_run(run_directory)
    answers = [loaded.predictor.predict(str(e)) for e in loaded.tests]
    right = [answer.correct for answer in answers]
    assert result["test_accuracy"] == sum(right) / len(right)
    assert result["test_examples"] == len(right) == len(loaded.tests)
    low, high = result["interval_95"]
    assert low < result["test_accuracy"] < high
    for name, part in result["operations"].items():
        of_it = [a.correct for a in answers if a.expression.startswith(f"{name} ")]
        assert (part["correct"], part["total"]) == (sum(of_it), len(of_it))
        assert result["per_operation"][name] == part["accuracy"]
    nine_for_eight = sum(a.expected == "8" and a.prediction == "9" for a in answers)
    assert result["confusion"]["counts"][8][9] == nine_for_eight
    assert result["trained_on"] == 0


def test_evaluate_shows_bars_digits_and_the_matrix(
    run_directory: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    picture = tmp_path / "confusion.png"
    out = text_of(capsys, "evaluate", run_directory, "--picture", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert re.search(r"^  Max +[█░]{40} .*, 95 % interval ", out, re.MULTILINE)
    assert re.search(r"^  hardest ", out, re.MULTILINE)
    assert re.search(r"^  units +[█░]{40} ", out, re.MULTILINE)
    assert re.search(r"^mistakes: \d taken for ", out, re.MULTILINE)
    rows = re.findall(r"^  \d     ([ \d·]+)$", out, re.MULTILINE)
    counts = object_of(capsys, "evaluate", run_directory)["confusion"]["counts"]
    assert [row.replace("·", "0").split() for row in rows] == [
        [str(count) for count in row[:10]] for row in counts[:10]
    ]


def test_evaluate_measures_expressions_of_a_file(
    run_directory: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    loaded = load_run(run_directory)
    known = [str(e) for e in loaded.settings.splits().train.expressions[:2]]
    new = [str(e) for e in loaded.tests[:3]]
    file = tmp_path / "mine.txt"
    file.write_text("\n\n".join([*known, *new]), encoding="utf-8-sig")
    result = object_of(capsys, "evaluate", run_directory, "--data", file)
    right = [loaded.predictor.predict(text).correct for text in (*known, *new)]
    assert result["test_accuracy"] == sum(right) / 5
    assert (result["test_examples"], result["trained_on"]) == (5, 2)
    out = text_of(capsys, "evaluate", run_directory, "--data", file)
    assert "2 of these 5 expressions" in out
    assert "never seen" not in out


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"Max ( 1 2 3 )\n\nMux ( 1 2 3 )\n", "mine.txt, line 3: unknown operation 'Mux'"),
        (b"Max ( 1 2 3 )\nMax ( 1 2 3 4 )\n", "mine.txt, line 2: wrong number of arguments"),
        (b"Max ( 1 2 3 )\nMax ( 1 2 \xff )\n", "mine.txt, line 2: not UTF-8 text"),
        (b"\n \n", "mine.txt has no expression; write one a line"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_line(
    content: bytes,
    complaint: str,
    run_directory: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    (tmp_path / "mine.txt").write_bytes(content)
    assert complaint in mistake_of(
        capsys, "evaluate", run_directory, "--data", tmp_path / "mine.txt"
    )


def test_mistakes_on_the_line_are_answered(
    run_directory: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = run_directory
    for arguments, complaint in (
        (("evaluate", run, "--data", tmp_path / "no.txt"), "cannot read"),
        (("evaluate", run, "--picture", tmp_path / "x.gif"), "must end in one of"),
        (("attention", run, EXPRESSION, "--layer", 3), "--layer must be an integer from 1 to 2"),
        (("attention", run, EXPRESSION, "--layer", 1, "--head", 0), "--head must be an integer"),
        (("attention", run, EXPRESSION, "--head", 1), "--head 1 is one of a layer; add --layer"),
        (("attention", run, "--layer", 1), "give one, for instance"),
        (("attention", run, "Max ( 5 3"), "unbalanced parentheses"),
        (("attention", run, "Max ( 5 3 )"), "wrong number of arguments"),
        (("attention", run, EXPRESSION, "--picture", "x.jpg"), "must end in one of"),
        (("attention", tmp_path / "nowhere"), "does not exist"),
        (("embeddings", tmp_path / "nowhere"), "does not exist"),
    ):
        assert complaint in mistake_of(capsys, *arguments)
    assert not list(tmp_path.iterdir())


def test_attention_shows_the_weights_of_the_model(
    run_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens, layers = attention_weights(load_run(run_directory).predictor, EXPRESSION)
    result = object_of(capsys, "attention", run_directory, EXPRESSION)
    assert (result["tokens"], result["readout"], result["expected"]) == (tokens, 0, "9")
    np.testing.assert_array_equal(np.float32(result["layers"]), np.stack(layers))
    assert len(result["heads"]) == 4
    out = text_of(capsys, "attention", run_directory, EXPRESSION, "--layer", 2, "--head", 1)
    header = next(line for line in out.splitlines() if line.split() == tokens)
    rows = out.splitlines()[out.splitlines().index(header) + 1 :][: len(tokens)]
    shown = [[float(n) for n in re.findall(r"\d?\.\d+", row)] for row in rows]
    np.testing.assert_allclose(shown, layers[1][0], atol=0.0101)
    assert rows[0].startswith(">Max") and "only the row of Max reaches the answer" in out
    overview = text_of(capsys, "attention", run_directory, EXPRESSION)
    assert all(f"layer {n}, head {m}" in overview for n in (1, 2) for m in (1, 2))
    assert len(re.findall(r" (?:focused|mixed|distributed) ", overview)) == 4


def test_attention_writes_every_picture(
    run_directory: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    result = object_of(capsys, "attention", run_directory, EXPRESSION, "--out", tmp_path / "p")
    names = sorted(path.name for path in (tmp_path / "p").iterdir())
    assert names == sorted(
        ["all-layers.png", "layer-1.png", "layer-2.png"]
        + [f"layer-{layer}-head-{head}.png" for layer in (1, 2) for head in (1, 2)]
    )
    assert sorted(Path(path).name for path in result["pictures"]) == names
    sizes = set()
    for options in ((), ("--layer", 1), ("--layer", 1, "--head", 2)):
        picture = tmp_path / "one.png"
        text_of(capsys, "attention", run_directory, EXPRESSION, *options, "--picture", picture)
        sizes.add(picture.read_bytes()[16:24])
    assert len(sizes) == 3


def test_attention_says_what_heads_do_over_the_test_examples(
    run_directory: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    picture = tmp_path / "roles.png"
    result = object_of(capsys, "attention", run_directory, "--picture", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    loaded = load_run(run_directory)
    assert result["examples"] == len(loaded.tests)
    hits = 0
    for expression in loaded.tests:
        tokens, layers = attention_weights(loaded.model, str(expression))
        hits += tokens[layers[1][1][0].argmax()] == str(max(expression.arguments))
    share = result["heads"][3]["readout"]["shares"]["the largest number"]
    assert share == pytest.approx(hits / result["examples"])
    out = text_of(capsys, "attention", run_directory)
    assert out.count("  all     ") == 4 and out.count("from every token") == 2
    mine = tmp_path / "mine.txt"
    mine.write_text("Max ( 1 2 3 )\nMax ( 3 2 1 )\n")
    result = object_of(capsys, "attention", run_directory, "--data", mine)
    assert result["examples"] == 2 and list(result["heads"][0]["by_group"]) == ["Max"]
    assert f"2 expressions of {mine}" in text_of(capsys, "attention", run_directory, "--data", mine)
    mine.write_text("Max ( 1 2 3 )\nMax\n")
    assert "line 2" in mistake_of(capsys, "attention", run_directory, "--data", mine)
    both = ("attention", run_directory, EXPRESSION, "--data", mine)
    assert "not both" in mistake_of(capsys, *both)


def test_embeddings_are_those_of_the_best_epoch(
    run_directory: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    result = object_of(capsys, "embeddings", run_directory, "--out", tmp_path / "p")
    table = load_run(run_directory).model.embedding.weight.value
    expected = embedding_report(table, NamedTokens.of(DIGIT_TOKENS, OPERATIONS))
    assert result["norms"] == pytest.approx(expected.norms)
    np.testing.assert_allclose(result["digit_cosines"], expected.digit_cosines)
    assert [epoch["epoch"] for epoch in result["epochs"]] == [0, 1, 2]
    assert result["epochs"][0]["learned"] is None and result["epochs"][2]["learned"]["norms"]
    assert result["missing"] == []
    names = "norms cosines distance map epochs learned-cosines learned-distance".split()
    assert sorted(path.stem for path in (tmp_path / "p").iterdir()) == sorted(names)
    out = text_of(capsys, "embeddings", run_directory)
    assert re.search(r"^  7 +[█░]{40} +\d", out, re.MULTILINE)
    assert f"{expected.trend:+.2f}" in out
    framed = re.findall(r"^\|(.{64})\|$", out, re.MULTILINE)
    assert len(framed) == 20
    assert sorted(" ".join(framed).split()) == sorted(expected.map.tokens)


def test_a_run_without_records_shows_the_rest_and_says_what_is_missing(
    run_directory: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    old = tmp_path / "old"
    shutil.copytree(run_directory, old)
    shutil.rmtree(old / "embeddings")
    assert main(["embeddings", str(old)]) == 0
    out, err = capsys.readouterr()
    assert "lacks the records of its embeddings" in err
    assert "over the epochs" not in out and "cosines of embeddings" in out
    assert object_of(capsys, "embeddings", old)["missing"] == [str(old / "embeddings")]
    shutil.copytree(run_directory / "embeddings", old / "embeddings")
    first = old / "embeddings/epoch-0000.safetensors"
    first.unlink()
    assert main(["embeddings", str(old)]) == 0
    out, err = capsys.readouterr()
    assert f"missing: {first}" in err
    assert "over the epochs" in out and "what was learned" not in out
    assert object_of(capsys, "embeddings", old)["missing"] == [str(first)]
    (old / "embeddings/epoch-0001.safetensors").write_bytes(b"damaged")
    assert "epoch-0001.safetensors is truncated, damaged" in mistake_of(capsys, "embeddings", old)


def test_several_seeds_are_runs_like_any_other(
    run_directory: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    directory = tmp_path / "several"
    arguments = ["train", "digits", *TINY.split(), "--out", directory, "--seed", 41, "--seeds", 2]
    result = object_of(capsys, *arguments)
    assert result["seeds"] == [41, 42] and result["run"] == str(directory)
    own = json.loads((run_directory / "result.json").read_text())
    for name in ("test_accuracy", "test_loss", "per_operation", "best_epoch"):
        assert result["runs"][1][name] == own[name]
    accuracies = [run["test_accuracy"] for run in result["runs"]]
    assert accuracies[0] != accuracies[1]
    assert result["test_accuracy"] == pytest.approx(sum(accuracies) / 2)
    assert result["spread"]["spread"] == pytest.approx(abs(accuracies[0] - accuracies[1]) / 2**0.5)
    assert object_of(capsys, "evaluate", directory / "seed-42")["test_accuracy"] == accuracies[1]
    assert "seed-41 is already there" in mistake_of(capsys, *arguments)
    out = text_of(capsys, *arguments, "--overwrite")
    assert re.search(r"^test accuracy +\d+\.\d\d % in the mean of 2 seeds", out, re.MULTILINE)
    assert re.search(r"^ +42 +\d", out, re.MULTILINE) and "standard deviation" in out


def test_a_number_of_seeds_that_makes_no_sense_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "seeds must be an integer from 1 to 10000, got 0" in mistake_of(
        capsys, "train", "--seeds", 0
    )
    assert "leave out --seeds" in mistake_of(capsys, "train", "--seeds", 2, "--tour")
    assert not list(tmp_path.iterdir())
