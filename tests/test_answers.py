"""The decoder's tasks: right answers, unseen inputs, what is learned, small runs of each."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import Recorder, one_thread

from fastformer.analysis.run_evaluation import evaluate_run
from fastformer.cli import main
from fastformer.data.answers import (
    ANSWER_TASKS,
    ANSWER_TOKENS,
    AnswerTask,
    Drawn,
    draw_training,
    draw_unseen,
)
from fastformer.data.vocabulary import DIGIT_TOKENS
from fastformer.generation import generate
from fastformer.models.config import DecoderConfig
from fastformer.training.answers_run import (
    AnswerSettings,
    resume_answers,
    train_answers,
)
from fastformer.training.config import TrainingConfig
from fastformer.training.loop import TrainingInterrupted, load_weights
from fastformer.training.presets import PRESETS, TEXT_PRESETS, with_preset
from fastformer.training.run_directory import RunDirectory

__all__ = ["one_thread"]  # a fixture that every test here uses

OPERATIONS = {"First": 0, "Second": 1, "Last": -1}


def value(words: list[str]) -> int:
    """Return the value of one expression, and take its words away from the front."""
    word = words.pop(0)
    if word.isdigit():
        return int(word)
    assert words.pop(0) == "("
    values = []
    while words[0] != ")":
        values.append(value(words))
        if words[0] == ",":
            words.pop(0)
    words.pop(0)
    if word in OPERATIONS:
        return values[OPERATIONS[word]]
    return {"Add": sum, "Max": max, "Min": min}[word](values)


def text(ids: Any) -> str:
    return " ".join(ANSWER_TOKENS[token] for token in ids if token >= 0)


def expected_answer(name: str, question: str) -> str:
    """Work out the answer of a question from its text."""
    if name in ("double-digits", "three-digits", "addition"):
        question = re.sub(r"(?<=\d) (?=\d)", "", question)
    if name == "addition":
        left, right = map(int, question.removesuffix(" =").split(" + "))
        digits = f"{left + right:011d}"[::-1]
    else:
        answer = value(question.split())
        width = {"double-digits": 2, "three-digits": 3}.get(name, 1)
        digits = f"{answer:0{width}d}"
        digits = digits[::-1] if name == "arithmetic" else digits
    return " ".join([*digits, "[EOS]"])


def test_the_classifiers_ids_stay() -> None:
    assert ANSWER_TOKENS[:20] == DIGIT_TOKENS
    assert ANSWER_TOKENS[20:] == ("Add", "+", "=")


@pytest.mark.parametrize("name", ANSWER_TASKS)
def test_answers_are_right(name: str) -> None:
    task = AnswerTask(name=name)
    for drawn in (draw_training(task, 1, 0, 300), draw_unseen(task, 1, "test", 300)):
        assert len(drawn.question) == 300
        for question, answer in zip(drawn.question, drawn.answer, strict=True):
            assert text(answer) == expected_answer(name, text(question))


@pytest.mark.parametrize("name", ["nested", "arithmetic"])
def test_hints_are_the_values_of_the_parts(name: str) -> None:
    drawn = draw_training(AnswerTask(name=name), 1, 0, 200)
    for question, hints in zip(drawn.question, drawn.hints, strict=True):
        parts = re.findall(r"\w+ \( [\d ]+ \)", text(question))
        assert parts
        assert text(hints) == " ".join(str(value(part.split())) for part in parts)
        assert all(ANSWER_TOKENS[token] == ")" for token in question[hints >= 0])


@pytest.mark.parametrize("name", ANSWER_TASKS)
def test_no_unseen_input_is_trained_on(name: str) -> None:
    task = AnswerTask(name=name)

    def questions(drawn: Drawn) -> set[str]:
        return {text(row) for row in drawn.question}

    stream = draw_training(task, 1, 0, 30_000)
    trained = questions(stream)
    parts = [questions(draw_unseen(task, 1, part, 500)) for part in ("validation", "test")]
    assert [len(part) for part in parts] == [500, 500]  # each input once
    assert not parts[0] & parts[1]
    assert not trained & (parts[0] | parts[1])
    assert trained & questions(stream.rows(np.arange(1)))  # it would be seen


def test_a_batch_depends_on_seed_and_place_alone() -> None:
    task = AnswerTask(name="nested")

    def tokens(seed: int, place: int) -> bytes:
        return draw_training(task, seed, place, 64).packed(hints=True)[0].tokens.tobytes()

    assert tokens(1, 5) == tokens(1, 5)
    assert len({tokens(1, 5), tokens(1, 6), tokens(2, 5)}) == 3


def test_only_answers_are_learned() -> None:
    drawn = draw_unseen(AnswerTask(name="arithmetic"), 1, "test", 50)
    batch, targets = drawn.packed(hints=False)
    for index in range(50):
        rows = slice(batch.offsets[index], batch.offsets[index + 1])
        question = drawn.question[index][drawn.question[index] >= 0]
        answer = drawn.answer[index][drawn.answer[index] >= 0]
        asked = targets[rows]
        assert batch.tokens[rows].tolist() == [*question, *answer[:-1]]
        assert asked.tolist() == [-1] * (question.size - 1) + answer.tolist()
    hinted = drawn.packed(hints=True)[1]
    assert (hinted[targets >= 0] == targets[targets >= 0]).all()
    assert np.count_nonzero(hinted >= 0) == np.count_nonzero(targets >= 0) + 100


def small_settings(name: str, **training: Any) -> AnswerSettings:
    options: dict[str, Any] = {
        "epochs": 2,
        "batch_size": 16,
        "optimizer": "adamw",
        "learning_rate": 3e-3,
    }
    return AnswerSettings(
        task=AnswerTask(name=name, examples=320, validation_examples=50, test_examples=100),
        model=DecoderConfig(vocab_size=23, embed_dim=16, num_heads=2, num_layers=1, ffn_dim=32),
        training=TrainingConfig(**options | training),
        seed=1,
    )


@pytest.mark.parametrize("name", ANSWER_TASKS)
def test_a_small_version_is_trained_and_tested(name: str, tmp_path: Path) -> None:
    callbacks = Recorder()
    result = train_answers(small_settings(name), tmp_path / "run", callbacks)
    losses = [record["train_loss"] for record in callbacks.records]
    assert losses[1] < 0.9 * losses[0]
    assert (result["steps"], result["test_examples"]) == (40, 100)
    assert RunDirectory.open(tmp_path / "run").read_result() == result
    again = evaluate_run(tmp_path / "run").as_json()
    assert again["test_accuracy"] == result["test_accuracy"]


def test_test_accuracy_is_that_of_greedy_generation(tmp_path: Path) -> None:
    settings = small_settings("long-lists", epochs=10, learning_rate=1e-2)
    result = train_answers(settings, tmp_path / "run", Recorder())
    model = settings.new_model()
    load_weights(model, RunDirectory.open(tmp_path / "run").best())
    drawn = draw_unseen(settings.task, 1, "test", 100)
    prompts = [row[row >= 0].tolist() for row in drawn.question]
    found = generate(model, prompts, max_new_tokens=2, end=1)
    right = [
        one.ended and [*one.tokens, 1] == row[row >= 0].tolist()
        for one, row in zip(found, drawn.answer, strict=True)
    ]
    assert 0 < sum(right) < 100
    assert result["test_accuracy"] == sum(right) / 100


class StopAt(Recorder):
    """Asks to stop at a step, as a signal does."""

    def __init__(self, trainer_step: int) -> None:
        super().__init__()
        self.at = trainer_step

    def stepped(self, step: int, loss: float, learning_rate: float, examples: int) -> None:
        super().stepped(step, loss, learning_rate, examples)
        if step == self.at:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    settings = small_settings("addition")
    whole = train_answers(settings, tmp_path / "whole", Recorder())
    with pytest.raises(TrainingInterrupted):
        train_answers(settings, tmp_path / "stopped", StopAt(27))
    resumed = resume_answers(tmp_path / "stopped", Recorder())
    for name in ("test_loss", "test_accuracy", "steps", "best_epoch"):
        assert resumed[name] == whole[name]
    runs = [RunDirectory.open(tmp_path / name).latest() for name in ("whole", "stopped")]
    for name, array in runs[0].tensors.items():
        assert array.tobytes() == runs[1].tensors[name].tobytes()


def test_options_go_before_a_presets() -> None:
    words = with_preset(["train", "digits", "--preset", "nested", "--epochs=3", "--norm", "post"])
    assert words[:7] == ["train", "digits", "--preset", "nested", "--epochs=3", "--norm", "post"]
    added = dict(word.split("=") for word in words[7:])
    assert added["--num-layers"] == "3"
    assert not {"--epochs", "--norm"} & added.keys()
    assert with_preset(["train", "digits"]) == ["train", "digits"]
    assert "--examples=1000" in with_preset(["train", "digits", "--preset=small"])


def test_presets_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    small = ["--epochs", "1", "--examples", "640", "--num-layers", "1", "--embed-dim", "16"]
    assert main(["train", "digits", "--preset", "addition", "--json", "--out", out, *small]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["steps"], result["test_examples"]) == (10, 10_000)
    assert main(["evaluate", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["test_accuracy"] == result["test_accuracy"]
    assert main(["train", "digits", "--preset", "nestde"]) == 2
    error = capsys.readouterr().err
    assert "did you mean 'nested'" in error
    assert all(name in error for name in PRESETS)


@pytest.mark.parametrize("name", sorted(set(PRESETS) - set(ANSWER_TASKS) - set(TEXT_PRESETS)))
def test_a_small_version_of_a_size_is_trained(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    small = ["--epochs", "1", "--examples", "320"]
    assert main(["train", "digits", "--preset", name, "--json", "--out", out, *small]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    config = RunDirectory.open(out).config
    used = {**config["task"], **config["model"]}
    wanted: dict[str, Any] = PRESETS[name] | {"examples": 320}
    assert {option: used[option] for option in wanted} == wanted
    assert (result["parameters"] == 102_036) == (name != "wide")


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name must be one of"):
        AnswerTask(name="addtion")
    task, training = AnswerTask(name="addition"), TrainingConfig()
    with pytest.raises(ValueError, match="have 33 tokens, which is 3 more than max_seq_len=30"):
        model = DecoderConfig(vocab_size=23, max_seq_len=30)
        AnswerSettings(task=task, model=model, training=training)
    with pytest.raises(ValueError, match="vocab_size must be 23 for addition, got 20"):
        AnswerSettings(task=task, model=DecoderConfig(vocab_size=20), training=training)
