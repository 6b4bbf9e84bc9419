"""Predict, evaluate, attention, embeddings, report and the rest on runs of the decoder."""

import json
import os
import re
import shutil
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import mistake_of, object_of, text_of
from runs import Recorder, one_thread

import fastformer as ff
from fastformer.analysis.attention import batch_attention
from fastformer.analysis.head_roles import head_roles
from fastformer.analysis.loading import LoadedRun, load_run
from fastformer.analysis.prediction import AnswerPredictor
from fastformer.analysis.token_roles import PART_ROLES, PLACE_ROLE, TOKEN_ROLES, role_sequence
from fastformer.cli import main
from fastformer.data.answer_formats import FORMS
from fastformer.data.answers import ANSWER_TOKENS, AnswerTask, draw_training, kept_apart
from fastformer.data.questions import parse_question, questions_of
from fastformer.data.vocabulary import encode
from fastformer.generation import log_softmax
from fastformer.training.answers_run import AnswerSettings
from fastformer.training.callbacks import TrainingCallbacks
from fastformer.training.config import TrainingConfig
from fastformer.training.runs import resume_run, train_run

__all__ = ["one_thread"]  # a fixture that every test here uses

NESTED, SUM = "Max ( First ( 2 8 ) 5 )", "12 + 345"
SIZES: dict[str, Any] = {"embed_dim": 16, "num_heads": 2, "num_layers": 2, "ffn_dim": 32}
TINY = "--embed-dim 16 --num-heads 2 --num-layers 1 --ffn-dim 32 --epochs 1 --examples 640".split()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Train two small models, not to perfection, so that there are mistakes."""
    directory = tmp_path_factory.mktemp("decoders")
    for name in ("nested", "addition"):
        settings = AnswerSettings(
            task=AnswerTask(name=name, examples=640, validation_examples=50, test_examples=120),
            model=ff.DecoderConfig(vocab_size=23, max_seq_len=40, **SIZES),
            training=TrainingConfig(epochs=2, batch_size=16, learning_rate=1e-2),
            seed=1,
        )
        train_run(settings, directory / name, Recorder())
    return {name: directory / name for name in ("nested", "addition")}


@pytest.fixture
def nested(runs: dict[str, Path], tmp_path: Path) -> Path:
    """Return a copy of a run, to change."""
    return Path(shutil.copytree(runs["nested"], tmp_path / "run"))


@pytest.mark.parametrize("name", ["nested", "addition"])
def test_answers_are_those_of_greedy_generation(name: str, runs: dict[str, Path]) -> None:
    loaded = load_run(runs[name])
    assert isinstance(loaded.predictor, AnswerPredictor)
    answers, loss = loaded.predictor.answers(loaded.tests)
    result = loaded.run.read_result()
    assert loss == result["test_loss"]
    for question, answer in list(zip(loaded.tests, answers, strict=True))[:20]:
        predicted = loaded.predictor.predict(str(question))
        assert (predicted.prediction, predicted.expected) == (answer, str(question.answer()))
        assert predicted.correct is (answer == str(question.answer()))
        shares = [share for _, share in predicted.top]
        assert shares == sorted(shares, reverse=True) and len(shares) == 5
    right = [a == str(q.answer()) for q, a in zip(loaded.tests, answers, strict=True)]
    assert sum(right) / len(right) == result["test_accuracy"]
    assert (0 < sum(right) < len(right)) is (name == "nested")


def test_the_probability_is_that_of_the_whole_answer(runs: dict[str, Path]) -> None:
    loaded = load_run(runs["nested"])
    found = loaded.predictor.predict(NESTED, top=20)
    question = parse_question(NESTED, FORMS["nested"])
    ids = encode([*question.tokens(), found.prediction], ANSWER_TOKENS)
    rows = log_softmax(loaded.model.forward(ff.pack([ids])))
    expected = np.exp(rows[-2, ids[-1]] + rows[-1, 1])
    assert found.probability == pytest.approx(expected, rel=1e-5)
    assert dict(found.top)[found.prediction] == pytest.approx(found.probability, rel=1e-9)


def test_predict_answers_from_the_command_line(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    result = object_of(capsys, "predict", runs["nested"], "max(first(2 8), 5)")
    assert (result["expression"], result["expected"]) == (NESTED, "5")
    out = text_of(capsys, "predict", runs["addition"], "345+12")
    first, *top = out.splitlines()
    assert first.startswith("345 + 12 = ") and first.endswith("(wrong, it is 357)")
    if len(top) == 6:  # where another answer is likelier as a whole
        assert top.pop(0) == "  likelier as a whole than what the model writes token by token:"
    assert len(top) == 5 and len({line.index("░") for line in top}) == 1
    deep = mistake_of(capsys, "predict", runs["nested"], "Max(First(Min(1 2) 3) 4)")
    assert "nests 3 deep, which is 1 more than the 2 of nested, at 'Min' at character 11" in deep
    long = mistake_of(capsys, "predict", runs["nested"], f"Max(First(2 8) {'1 ' * 60})")
    assert "has 69 tokens, which is 29 more than the 40 that this model reads" in long
    few = object_of(capsys, "predict", runs["nested"], NESTED, "--top", 2)
    assert few["top"] == result["top"][:2]
    assert "top must be an integer from 1 to 23, got 0" in mistake_of(
        capsys, "predict", runs["nested"], NESTED, "--top", 0
    )
    assert "use whole numbers" in mistake_of(capsys, "predict", runs["addition"], "1 $ 2")


def test_evaluate_counts_operations_parts_and_digits(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    loaded = load_run(runs["nested"])
    answers, _ = loaded.predictor.answers(loaded.tests)
    found = object_of(capsys, "evaluate", runs["nested"], "--picture", tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert found["per_operation"] == loaded.run.read_result()["per_operation"]
    pairs = list(zip(loaded.tests, answers, strict=True))
    for name, part in found["inner_operations"].items():
        of_it = [str(q.answer()) == a for q, a in pairs if f" {name} (" in str(q)]
        assert (part["correct"], part["total"]) == (sum(of_it), len(of_it))
    wrong = sum(q.answer() == 8 and a == "9" for q, a in pairs)
    assert found["confusion"]["counts"][8][9] == wrong
    out = text_of(capsys, "evaluate", runs["nested"])
    assert "accuracy by inner operation, hardest first" in out
    assert re.search(r"^  hardest ", out, re.MULTILINE)
    sums = object_of(capsys, "evaluate", runs["addition"])
    assert [part["place"] for part in sums["per_digit"]][-1] == "10^10"
    assert sums["inner_operations"] == {}


def test_evaluate_measures_expressions_of_a_file(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    loaded = load_run(runs["nested"])
    trained = questions_of(draw_training(loaded.settings.task, 1, 0, 2), FORMS["nested"])
    file = tmp_path / "mine.txt"
    asked = [*map(str, trained), *map(str, loaded.tests[:3])]
    file.write_text("\n\n".join(asked), encoding="utf-8-sig")
    found = object_of(capsys, "evaluate", runs["nested"], "--data", file)
    right = [loaded.predictor.predict(text).correct for text in asked]
    assert (found["test_accuracy"], found["test_examples"]) == (sum(right) / 5, 5)
    # The stream keeps no list, but the hash tells what can never be in it.
    assert (found["trained_on"], found["never_trained_on"]) == (None, 3)
    out = text_of(capsys, "evaluate", runs["nested"], "--data", file)
    assert "not 3 of these 5 expressions; any of the others may have been drawn" in out
    file.write_text(f"{NESTED}\n\nMax ( 1 2 )\n")
    assert "line 3: in nested, at least one" in mistake_of(
        capsys, "evaluate", runs["nested"], "--data", file
    )
    file.write_text("\n")
    assert f"for instance '{NESTED}'" in mistake_of(
        capsys, "attention", runs["nested"], "--data", file
    )


def test_inputs_that_are_kept_apart_are_those_that_are_never_drawn(runs: dict[str, Path]) -> None:
    settings = load_run(runs["addition"]).settings
    assert isinstance(settings, AnswerSettings)
    drawn = draw_training(settings.task, 1, 0, 200).question
    assert not kept_apart([row[row >= 0].tolist() for row in drawn]).any()
    for part in ("validation", "test"):
        unseen = settings.unseen(part).question
        assert kept_apart([row[row >= 0].tolist() for row in unseen]).all()


def test_attention_is_that_on_the_question_and_the_answer(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    loaded = load_run(runs["addition"])
    found = object_of(capsys, "attention", runs["addition"], SUM)
    given = parse_question(SUM, FORMS["addition"]).tokens()
    assert found["tokens"][: len(given)] == given
    assert found["read_rows"] == list(range(len(given) - 1, len(found["tokens"])))
    weights = batch_attention(loaded.model, ff.pack([encode(found["tokens"], ANSWER_TOKENS)]))
    np.testing.assert_array_equal(np.float32(found["layers"]), np.concatenate(weights))
    out = text_of(capsys, "attention", runs["addition"], SUM, "--layer", 2, "--head", 1)
    assert len(re.findall("^>", out, re.MULTILINE)) == len(found["read_rows"])
    assert "In layer 2, only the rows from = on reach the answer" in out
    text_of(capsys, "attention", runs["nested"], NESTED, "--out", tmp_path / "p")
    assert len(list((tmp_path / "p").iterdir())) == 1 + 2 + 4
    out = text_of(capsys, "attention", runs["nested"], "--picture", tmp_path / "roles.png")
    assert "120 test examples" in out and "a token after which a digit is written" in out
    assert (tmp_path / "roles.png").read_bytes().startswith(b"\x89PNG")


def test_roles_are_those_of_the_tokens() -> None:
    names = (*TOKEN_ROLES, *PART_ROLES)
    question = parse_question("Max ( First ( 2 8 ) Min ( 7 5 ) 5 )", FORMS["nested"])
    found = role_sequence(question)
    assert found.tokens == question.tokens() and found.given == len(found.tokens)
    places = {
        name: np.flatnonzero(row).tolist() for name, row in zip(names, found.flags, strict=True)
    }
    assert places["the first number"] == [4] and places["the last number"] == [12]
    assert places["the largest number"] == [5]
    assert places["the answer"] == [10, 12]
    assert places["the end of a part"] == [6, 11]
    assert places["the end of the answering part"] == [11]
    assert places["the operation"] == [0, 2, 7]
    total = role_sequence(parse_question(SUM, FORMS["addition"]))
    assert "".join(total.tokens) == "0000000012+0000000345=7530000000"
    assert total.adds[21].tolist() == [9, 20] and total.adds[30].tolist() == [0, 11]
    assert (total.adds[:21] == -1).all() and (total.adds[31:] == -1).all()


def test_a_head_that_looks_at_the_digits_to_be_added_is_found(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_run(runs["addition"])

    def planted(model: object, batch: ff.PackedBatch) -> list[np.ndarray]:
        found = np.zeros((2, batch.num_sequences, 2, 32, 32))
        for row in range(32):
            found[:, :, 0, row, 30 - row if 21 <= row < 31 else row] = 1  # of the first number
            found[:, :, 1, row, 0] = 1
        return list(found)

    monkeypatch.setattr("fastformer.analysis.head_roles.batch_attention", planted)
    adds, fixed, _, last = head_roles(loaded.model, loaded.tests)
    assert adds.readout is not None and last.readout is not None
    assert (adds.readout.best, adds.readout.share) == (PLACE_ROLE, 1.0)
    assert adds.tokens is not None
    assert (adds.tokens.best, adds.tokens.shares["itself"]) == ("itself", 22 / 32)
    assert PLACE_ROLE not in adds.tokens.shares  # most tokens add nothing
    assert fixed.readout is not None and fixed.readout.best == "a fixed position"
    assert last.tokens is None and last.readout.shares[PLACE_ROLE] == pytest.approx(0.1)
    # Two digits of those that a row sees, which become more as the answer grows.
    seen = np.arange(22, 32)
    assert adds.readout.chance[PLACE_ROLE] == pytest.approx((2 / seen).mean())


def test_embeddings_curves_and_inspection(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = object_of(capsys, "embeddings", runs["addition"], "--out", tmp_path / "p")
    assert list(found["norms"]) == list(ANSWER_TOKENS)
    assert found["operations"] == ["+"] and found["map"]["tokens"] == [*"0123456789", "+"]
    assert len(found["pictures"]) == 7
    curves = object_of(capsys, "plot", runs["nested"], "--out", tmp_path / "curves.png")
    assert curves["runs"][0]["epoch"] == [1, 2] and curves["runs"][0]["missing"] == []
    out = text_of(capsys, "inspect", runs["nested"], "--points", 3, "--picture", tmp_path / "i.png")
    loss = float(re.findall(r"the loss around the weights: (\S+) in the middle", out)[0])
    batch, targets = load_run(runs["nested"]).settings.first_examples(256)
    logits = load_run(runs["nested"]).model.forward(batch)
    assert loss == pytest.approx(ff.CrossEntropyLoss().forward(logits, targets), rel=1e-3)


def test_the_report_has_the_decoders_answers_and_attention(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "report.html"
    found = object_of(capsys, "report", runs["addition"], SUM, "--out", file)
    assert found["missing"] == []
    html = file.read_text()
    data = json.loads(re.findall(r'id="data">(.*?)</script>', html)[0])
    first, *others = data["attention"]
    assert first["label"].startswith(SUM) and first["expected"] == "357" and first["causal"]
    assert first["read"][0] == 21 and others
    assert html.count("10^10") == 1 and "from what is read out" in html
    nested = tmp_path / "nested.html"
    object_of(capsys, "report", runs["nested"], "--out", nested)
    assert "Right answers, hardest inner operation first" in nested.read_text()
    assert "nothing follows" in mistake_of(capsys, "report", runs["nested"], "Max")


def test_damage_and_missing_records_are_told(
    nested: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = nested / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    metrics.write_text("\n".join(["{", lines[1], ""]))
    shutil.rmtree(nested / "embeddings")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["plot", str(nested)]) == 0
    assert "is damaged, no JSON object with a step: line 1\n" in capsys.readouterr().err
    found = object_of(capsys, "report", nested)
    assert len(found["missing"]) == 2
    assert "line 1" in found["missing"][0] and "records of its embeddings" in found["missing"][1]
    (nested / "checkpoints/best.safetensors").unlink()
    for command in ("evaluate", "attention", "embeddings", "inspect"):
        assert "no best checkpoint yet" in mistake_of(capsys, command, nested)
    metrics.unlink()
    assert "has nothing to draw" in mistake_of(capsys, "plot", nested)
    assert "nothing to report" in mistake_of(capsys, "report", nested)
    config = nested / "config.toml"
    config.write_text(config.read_text().replace('name = "nested"', 'name = "nestd"'))
    assert "did you mean 'nested'" in mistake_of(capsys, "evaluate", nested)


def test_a_run_that_has_ended_keeps_its_result(nested: Path) -> None:
    result = load_run(nested).run.read_result()
    callbacks = Recorder()
    assert resume_run(nested, callbacks) == result
    assert callbacks.steps == [] and "nothing is left to train" in callbacks.messages[0]
    # Without result and records it is tested anew, and its times are not known.
    (nested / "result.json").unlink()
    (nested / "metrics.jsonl").unlink()
    again = resume_run(nested, Recorder())
    assert again["test_loss"] == result["test_loss"]
    assert (again["seconds"], again["examples_per_second"]) == (0, 0)


def test_seeds_and_the_tour_train_decoders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "long-lists", *TINY]
    found = object_of(capsys, *words, "--seeds", 2, "--out", tmp_path / "seeds")
    assert found["seeds"] == [42, 43]
    assert object_of(capsys, "train", "--resume", tmp_path / "seeds") == found
    out = text_of(capsys, *words, "--tour", "--out", tmp_path / "tour")
    assert len(re.findall(r"^\d+ of 10  ", out, re.MULTILINE)) == 10
    assert "0 of the first 1,000 examples to train on are such inputs" in out
    own, seed = (
        json.loads((tmp_path / p / "result.json").read_text()) for p in ("tour", "seeds/seed-42")
    )
    assert own["test_loss"] == seed["test_loss"]
    complaint = mistake_of(capsys, *words, "--tour", "--seeds", 2, "--out", tmp_path / "x")
    assert "leave out --seeds" in complaint
    assert not (tmp_path / "x").exists()


class Interrupting(TrainingCallbacks):
    """Those of a person who presses Ctrl-C in the second of several runs."""

    made = 0

    def __init__(self) -> None:
        type(self).made += 1
        self.interrupts = self.made == 2

    def stepped(self, step: int, loss: float, learning_rate: float, examples: int) -> None:
        if self.interrupts and step == 3:
            os.kill(os.getpid(), signal.SIGINT)


def test_seeds_that_were_stopped_go_on_to_the_same_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", "long-lists", *TINY, "--seeds", 3]
    whole = object_of(capsys, *words, "--out", tmp_path / "whole")
    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        # One after the other, in this process.
        patch.setattr("fastformer.threads.available_threads", lambda: 1)
        patch.setattr("fastformer.training.planned_run.TrainingCallbacks", Interrupting)
        assert main([*map(str, words), "--out", str(stopped)]) == 130
    assert f"fastformer train --resume {stopped}\n" in capsys.readouterr().err
    assert not (stopped / "seed-44").exists()
    resumed = object_of(capsys, "train", "--resume", stopped)
    for name in ("test_accuracy", "per_operation", "seeds", "steps", "spread"):
        assert resumed[name] == whole[name]
    assert "go on with --resume" in mistake_of(capsys, *words, "--out", stopped)


def test_what_is_loaded_says_what_it_can_be_asked(runs: dict[str, Path]) -> None:
    loaded: LoadedRun = load_run(runs["addition"])
    assert loaded.predictor.example == SUM
    assert loaded.predictor.read(SUM).answer() == 357
