"""Runs of the digit task: what comes out, what is kept, and what is refused."""

import dataclasses
import json
import math
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import SIZES, Recorder, one_thread, small_settings, tree, without_times

import fastformer as ff
from fastformer.analysis.loading import load_run
from fastformer.analysis.run_evaluation import evaluate_run
from fastformer.data import DIGIT_TOKENS, DigitTask, parse_expression
from fastformer.errors import CheckpointError, InvalidValueError, RunError
from fastformer.training import loop
from fastformer.training.checkpoint import load_checkpoint
from fastformer.training.config import TrainingConfig
from fastformer.training.digits_run import RunSettings
from fastformer.training.loop import TrainingDivergedError
from fastformer.training.run_directory import RunDirectory
from fastformer.training.runs import resume_run, train_run
from fastformer.training.steps import Scores

__all__ = ["one_thread"]  # a fixture that every test here uses

RESULT = {
    *("test_accuracy", "test_loss", "per_operation", "test_examples", "steps", "epochs"),
    *(
        "seconds",
        "examples_per_second",
        "tokens_per_second",
        "best_epoch",
        "parameters",
        "backend",
        "seed",
        "run",
    ),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a small model well enough to be asked."""
    run = tmp_path_factory.mktemp("runs") / "trained"
    train_run(small_settings(examples=2000, epochs=12), run, Recorder())
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of the trained run, to change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_the_result_says_what_came_out(trained: Path) -> None:
    result = json.loads((trained / "result.json").read_text())
    assert set(result) == RESULT
    records = RunDirectory.open(trained).read_metrics()
    assert result["epochs"] == len(records) == 12
    assert result["steps"] == records[-1]["step"]
    assert result["best_epoch"] == max(r["epoch"] for r in records if r["best"])
    assert set(result["per_operation"]) == {"First", "Second", "Last", "Max", "Min"}
    rates = [record["examples_per_second"] for record in records]
    assert min(rates) <= result["examples_per_second"] <= max(rates)
    assert 0 < sum(record["seconds"] for record in records) <= result["seconds"]
    assert (result["backend"], result["seed"], result["run"]) == ("numba", 42, str(trained))
    splits = small_settings(examples=2000).splits()
    assert result["test_examples"] == len(splits.test)
    seen = set(splits.train.expressions) | set(splits.validation.expressions)
    assert not seen & set(splits.test.expressions)


@pytest.mark.smoke
def test_a_small_model_answers_inputs_that_it_never_saw(tmp_path: Path) -> None:
    settings = small_settings(epochs=6, examples=2000)
    result = train_run(settings, tmp_path / "run", Recorder())
    assert result["test_accuracy"] > 0.7  # chance is 0.1


def test_evaluation_repeats_the_result(trained: Path) -> None:
    before = tree(trained)
    evaluated = evaluate_run(trained).as_json()
    result = json.loads((trained / "result.json").read_text())
    for name in ("test_accuracy", "test_loss", "test_examples", "per_operation", "run"):
        assert evaluated[name] == result[name]
    assert evaluated["checkpoint"] == str(trained / "checkpoints/best.safetensors")
    assert tree(trained) == before


def test_the_best_weights_are_those_that_are_tested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([Scores(1.0, 0.5), Scores(1.0, 0.4), Scores(1.0, 0.3)])
    monkeypatch.setattr(loop, "evaluate", lambda *_, **__: next(scores))
    settings = small_settings(epochs=3)
    result = train_run(settings, tmp_path / "run", Recorder())
    assert result["best_epoch"] == 1
    checkpoints = tmp_path / "run/checkpoints"
    best = load_checkpoint(checkpoints / "best.safetensors")
    assert best.metadata["progress"]["epoch"] == 1
    test = settings.splits().test
    for tensors, is_tested in (
        (best.tensors, True),
        (load_checkpoint(checkpoints / "step-00000030.safetensors").tensors, False),
    ):
        model = settings.new_model()
        weights = {n: a for n, a in tensors.items() if not n.startswith("optimizer.")}
        model.load_state_dict(weights)
        batch, targets = ff.pack(test.inputs), test.targets
        loss = ff.evaluate(model, batch, targets, ff.CrossEntropyLoss()).loss
        assert (loss == result["test_loss"]) is is_tested


@pytest.mark.smoke
def test_the_config_gives_back_the_settings(tmp_path: Path) -> None:
    settings = RunSettings(
        task=DigitTask(examples=500, operations=("Max", "Min"), num_arguments=4, balance=False),
        model=ff.TransformerConfig(vocab_size=20, pooling="mean", dropout=0.1, **SIZES),
        training=TrainingConfig(epochs=1, optimizer="sgd", schedule="cosine"),
        seed=7,
        backend="reference",
        dtype="float64",
    )
    run = RunDirectory.create(tmp_path / "run", settings.tables())
    assert RunSettings.from_run(run) == settings


def test_a_config_of_before_an_option_was_there_has_its_old_meaning(tmp_path: Path) -> None:
    settings = small_settings()
    tables = settings.tables()
    for table, name in (
        ("model", "norm_type"),
        ("model", "num_classes"),
        ("training", "label_smoothing"),
    ):
        del tables[table][name]
    assert RunSettings.from_run(RunDirectory.create(tmp_path / "run", tables)) == settings
    assert (settings.model.norm_type, settings.training.label_smoothing) == ("layernorm", 0.0)


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_a_run_with_other_forms_of_layers_is_tested_and_goes_on(
    backend: str, tmp_path: Path
) -> None:
    plain = small_settings(label_smoothing=0.1, epochs=2, backend=backend)
    forms = {"norm": "pre", "norm_type": "rmsnorm", "activation": "swiglu"}
    settings = dataclasses.replace(plain, model=dataclasses.replace(plain.model, **forms))
    result = train_run(settings, tmp_path / "run", Recorder())
    assert evaluate_run(tmp_path / "run").as_json()["test_loss"] == result["test_loss"]
    best = load_checkpoint(tmp_path / "run/checkpoints/best.safetensors").tensors
    assert {"blocks.0.norm1.weight", "blocks.0.feed_forward.gate.weight"} <= best.keys()
    assert not any("norm" in name and name.endswith("bias") for name in best)
    assert result["parameters"] == sum(array.size for array in best.values())
    assert resume_run(tmp_path / "run", Recorder())["test_loss"] == result["test_loss"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "^seed must be an integer >= 0, got -1$"),
        ({"backend": "torch"}, "^backend must be one of 'numba', 'reference', got 'torch'$"),
        ({"dtype": "float16"}, "^dtype must be one of 'float32', 'float64', got 'float16'"),
        ({"model": ff.TransformerConfig(vocab_size=21)}, "^vocab_size must be 20 .*, got 21$"),
        (
            {"model": ff.TransformerConfig(vocab_size=20, max_seq_len=7)},
            "have 8 tokens, which is 1 more than max_seq_len=7; raise max_seq_len or use fewer",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "task": DigitTask(),
        "model": ff.TransformerConfig(vocab_size=20),
        "training": TrainingConfig(),
    }
    with pytest.raises(InvalidValueError, match=message):
        RunSettings(**(good | changes))


def test_a_task_that_cannot_be_drawn_makes_no_directory(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="too few distinct inputs to split"):
        train_run(small_settings(examples=5), tmp_path / "run", Recorder())
    assert not (tmp_path / "run").exists()


def test_an_observer_sees_start_and_end_whatever_happens(tmp_path: Path) -> None:
    callbacks = Recorder()
    with pytest.raises(TrainingDivergedError):
        train_run(small_settings(learning_rate=1e30), tmp_path / "run", callbacks)
    ((total, first, description),) = callbacks.starts
    assert (total, first, callbacks.ends) == (30, 0, 1)
    assert "318 training examples" in description and "seed 42" in description


def test_overfitting_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "evaluate", lambda *_, **__: Scores(1.0, 0.0))
    callbacks = Recorder()
    train_run(small_settings(epochs=8), tmp_path / "run", callbacks)
    assert any("overfitting" in text for text in callbacks.messages)


def test_a_run_that_has_ended_is_left_as_it_is(run: Path) -> None:
    before = tree(run)
    callbacks = Recorder()
    result = resume_run(run, callbacks)
    assert result == json.loads((run / "result.json").read_text())
    assert (callbacks.starts, callbacks.steps) == ([], [])
    assert any("has ended after epoch 12: nothing is left" in text for text in callbacks.messages)
    assert tree(run) == before


@pytest.mark.parametrize("damage", ["", "{", '{"test_accuracy": 1.0}'])
def test_a_run_that_has_ended_without_a_good_result_is_tested_anew(run: Path, damage: str) -> None:
    good = json.loads((run / "result.json").read_text())
    if damage:
        (run / "result.json").write_text(damage)
    else:
        (run / "result.json").unlink()
    callbacks = Recorder()
    result = resume_run(run, callbacks)
    assert without_times(result) == without_times(good)
    assert callbacks.steps == []
    assert json.loads((run / "result.json").read_text()) == result


def test_a_predictor_answers_with_probabilities(trained: Path) -> None:
    predictor = load_run(trained).predictor
    right = 0
    for text in ("First(7,1,2)", "second ( 7 1 2 )", "Last(7 1 2)", "MAX(7,1,2)", "Min(7,1,2)"):
        answer = predictor.predict(text, top=len(DIGIT_TOKENS))
        assert answer.expression == str(parse_expression(text))
        assert answer.expected == str(parse_expression(text).answer())
        assert answer.correct is (answer.prediction == answer.expected)
        assert answer.top[0] == (answer.prediction, answer.probability)
        shares = [share for _, share in answer.top]
        assert shares == sorted(shares, reverse=True)
        assert math.fsum(shares) == pytest.approx(1, rel=1e-12)
        assert {token for token, _ in answer.top} == set(DIGIT_TOKENS)
        right += answer.correct
    assert right >= 4
    assert len(predictor.predict("Max(1,2,3)").top) == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the expression is empty"),
        ("Mix(1,2,3)", "unknown operation 'Mix'"),
        ("Max(1,2,x)", "unknown token 'x'"),
        ("Max(1,2)", "wrong number of arguments: Max takes 3 in this task, got 2"),
        ("Max(1,2,10)", "argument 3 of Max must be an integer from 0 to 9, got 10"),
    ],
)
def test_a_predictor_refuses_what_the_task_does_not_have(
    trained: Path, text: str, message: str
) -> None:
    with pytest.raises(InvalidValueError, match=message):
        load_run(trained).predictor.predict(text)


def test_a_predictor_refuses_a_bad_number_of_answers(trained: Path) -> None:
    for top in (0, 21):
        with pytest.raises(InvalidValueError, match=f"^top must be .* from 1 to 20, got {top}$"):
            load_run(trained).predictor.predict("Max(1,2,3)", top=top)


CONFIG_DAMAGE = [
    ("[run]", "[runs]", "'run' is missing"),
    (
        'kind = "digits"',
        'kind = "words"',
        "kind must be one of 'digits', ",
    ),
    ('kind = "digits"\n', "", "'kind' is missing"),
    ("seed = 42", "seed = -1", "seed must be an integer >= 0, got -1"),
    ("seed = 42", "sead = 42", "run has no setting 'sead'; did you mean 'seed'"),
    ("epochs = 12", "epochs = 0", "epochs must be an integer >= 1, got 0"),
    ("epochs = 12", "epoch = 12", "has no setting 'epoch'; did you mean 'epochs'"),
    ("vocab_size = 20", "vocab_size = 21", "vocab_size must be 20"),
    ("vocab_size = 20\n", "", "vocab_size"),
    ("num_classes = 0", "num_classes = 10", "num_classes must be 0 for the digit task"),
    ('pooling = "first"', 'pooling = "none"', "pooling must be 'first', 'mean' or 'last'"),
    ("num_heads = 2", 'num_heads = "2"', "num_heads must be an integer >= 1, got '2'"),
    ("min_value = 0", "min_value = 0.5", "min_value must be an integer from 0 to 9, got 0.5"),
]


@pytest.mark.parametrize("use", [evaluate_run, load_run])
@pytest.mark.parametrize(("old", "new", "message"), CONFIG_DAMAGE)
def test_a_damaged_config_is_refused(use: Any, old: str, new: str, message: str, run: Path) -> None:
    config = run / "config.toml"
    text = config.read_text()
    assert text.count(old) == 1
    config.write_text(text.replace(old, new))
    tomllib.loads(config.read_text())
    before = tree(run)
    with pytest.raises(RunError, match="config.toml does not hold the settings") as error:
        use(run)
    assert message in str(error.value)
    with pytest.raises(RunError, match="config.toml does not hold the settings"):
        resume_run(run, Recorder())
    assert tree(run) == before


def test_a_run_of_another_model_is_refused(run: Path) -> None:
    config = run / "config.toml"
    config.write_text(config.read_text().replace("embed_dim = 16", "embed_dim = 8"))
    before = tree(run)
    for use in (evaluate_run, load_run, lambda path: resume_run(path, Recorder())):
        with pytest.raises(CheckpointError, match=r"does not fit the model: weights: .* got \("):
            use(run)
    assert tree(run) == before


def test_a_run_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "run", small_settings().tables())
    with pytest.raises(RunError, match="no best checkpoint yet"):
        evaluate_run(tmp_path / "run")


def test_the_best_checkpoint_holds_weights_alone(trained: Path) -> None:
    best = load_checkpoint(trained / "checkpoints/best.safetensors")
    assert not any(name.startswith("optimizer.") for name in best.tensors)
    assert {array.dtype for array in best.tensors.values()} == {np.dtype("float32")}
