"""Training in one call: it learns, leaves the best weights, tells callbacks, names mistakes."""

import numpy as np
import pytest
from models import same_bits, use_one_thread

import fastformer as ff
from fastformer.errors import FastformerError, InvalidTypeError, InvalidValueError, RunError
from fastformer.training.run_directory import RunDirectory

SIZES = {"vocab_size": 7, "embed_dim": 16, "num_heads": 2, "num_layers": 1, "ffn_dim": 32}


def first_tokens(count, seed):
    """Return sequences, whose class is their first token."""
    random = np.random.default_rng(seed)
    sequences = [random.integers(0, 7, random.integers(2, 6)).tolist() for _ in range(count)]
    return ff.pack(sequences), [ids[0] for ids in sequences]


def next_tokens(count, seed):
    """Return sequences that count up, and what comes after each token."""
    random = np.random.default_rng(seed)
    rows = (random.integers(0, 7, (count, 1)) + np.arange(7)) % 7
    return ff.pack(rows[:, :-1].tolist()), rows[:, 1:].ravel()


def classifier(**options):
    use_one_thread()
    return ff.Transformer(ff.TransformerConfig(**SIZES, **options), seed=1)


@pytest.mark.smoke
def test_a_classifier_learns_and_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = classifier()
    validation = first_tokens(100, 1)
    history = ff.fit(
        model, first_tokens(300, 0), validation, epochs=6, learning_rate=1e-2, optimizer="adamw"
    )
    assert [record["epoch"] for record in history] == list(range(1, 7))
    best = max(record["validation_accuracy"] for record in history)
    assert best > 0.95
    assert ff.evaluate(model, *validation, ff.CrossEntropyLoss()).accuracy == best
    assert not list(tmp_path.iterdir())


def test_a_decoder_ends_with_the_weights_of_its_lowest_loss(tmp_path):
    use_one_thread()
    model = ff.TransformerDecoder(ff.DecoderConfig(**SIZES), seed=1)
    validation = next_tokens(40, 1)
    history = ff.fit(
        model, next_tokens(80, 0), validation, directory=tmp_path / "run", epochs=4,
        learning_rate=3e-2, batch_size=16,
    )  # fmt: skip
    losses = [record["validation_loss"] for record in history]
    assert min(losses) < 0.5
    loss = ff.evaluate(model, *validation, ff.CrossEntropyLoss()).loss
    np.testing.assert_allclose(loss, min(losses), 1e-6)
    run = RunDirectory.open(tmp_path / "run")
    assert run.read_metrics() == history
    assert same_bits(model.state_dict()["embedding.weight"], run.best().tensors["embedding.weight"])
    with pytest.raises(RunError, match="already there"):
        ff.fit(model, next_tokens(8, 0), validation, directory=tmp_path / "run")
    with pytest.raises(RunError, match=r"made by fastformer.fit, .* save the model"):
        ff.load(tmp_path / "run")


def test_the_same_seed_gives_the_same_bits():
    found = []
    for seed in (1, 1, 2):
        model = classifier(dropout=0.1)
        ff.fit(model, first_tokens(60, 0), first_tokens(20, 1), epochs=2, seed=seed)
        found.append(model.state_dict())
    assert same_bits(found[0], found[1]) and not same_bits(found[0], found[2])


@pytest.mark.parametrize(("best_by", "name"), [("loss", "loss"), (None, "accuracy")])
def test_the_best_epoch_is_that_of_what_is_asked(best_by, name):
    model, validation = classifier(), first_tokens(20, 1)
    history = ff.fit(
        model, first_tokens(100, 0), validation, best_by=best_by, epochs=8, learning_rate=3e-2
    )
    values = [record[f"validation_{name}"] for record in history]
    best = min(values) if name == "loss" else max(values)
    scores = ff.evaluate(model, *validation, ff.CrossEntropyLoss())
    np.testing.assert_allclose(getattr(scores, name), best, 1e-6)
    chosen = [record["epoch"] for record in history if record["best"]][-1]
    assert chosen == values.index(best) + 1


def test_what_a_class_counts_is_learned_first():
    """Of two classes that nothing tells apart, the one that counts more is answered."""
    inputs, targets = ff.pack([[1, 2]] * 40), [0, 1] * 20
    losses = []
    for weights, answer in (([3, 1, 0, 0, 0, 0, 0], 0), ([1, 3, 0, 0, 0, 0, 0], 1)):
        model = classifier()
        history = ff.fit(
            model, (inputs, targets), (inputs, targets), class_weights=weights, epochs=20,
            batch_size=10, accumulation_steps=3, learning_rate=1e-2,
        )  # fmt: skip
        assert model.forward(ff.pack([[1, 2]])).argmax() == answer
        losses.append(history[-1]["train_loss"])
    # The mean over what targets count: -3/4 log(3/4) - 1/4 log(1/4).
    np.testing.assert_allclose(losses, 0.5623, 0.08)
    alike, plain = classifier(), classifier()
    for model, options in ((alike, {"class_weights": [1.0] * 7}), (plain, {})):
        ff.fit(model, first_tokens(40, 0), first_tokens(20, 1), epochs=1, **options)
    np.testing.assert_allclose(
        alike.parameters().values, plain.parameters().values, rtol=1e-4, atol=1e-6
    )


def test_callbacks_patience_and_schedules():
    class Told(ff.TrainingCallbacks):
        steps, epochs, ended = 0, 0, False

        def stepped(self, step, loss, learning_rate, examples):
            self.steps = step

        def epoch_finished(self, record):
            self.epochs = record["epoch"]

        def finished(self):
            self.ended = True

    told = Told()
    history = ff.fit(
        classifier(), first_tokens(40, 0), first_tokens(20, 1), callbacks=told, epochs=30,
        batch_size=20, learning_rate=1e-9, patience=2, schedule="cosine", warmup_steps=3,
    )  # fmt: skip
    assert len(history) == told.epochs == 3 and told.steps == 6 and told.ended


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": 3}, InvalidTypeError, "model must be a Transformer or TransformerDecoder"),
        ({"train": [[1, 2]]}, InvalidTypeError, r"train must be a pair \(PackedBatch, targets\)"),
        ({"train": (ff.pack([[1]]), [1, 2])}, InvalidValueError, r"fit: train: .*must be \(1,\)"),
        ({"validation": (ff.pack([[1]]), [7])}, InvalidValueError, "fit: validation: .* 0 to 6"),
        (
            {"train": (ff.pack([[9]]), [1])},
            InvalidValueError,
            "fit: train: token ids must be below",
        ),
        ({"epochs": 0}, InvalidValueError, "epochs must be an integer >= 1"),
        ({"epoch": 3}, InvalidValueError, "no setting 'epoch'; did you mean 'epochs'"),
        ({"callbacks": print}, InvalidTypeError, "callbacks must be a TrainingCallbacks"),
        ({"class_weights": [1, 2]}, InvalidValueError, r"class_weights must be \(7,\), .*\(2,\)"),
        ({"class_weights": [-1] * 7}, InvalidValueError, "class_weights must be .* >= 0, got -1"),
        ({"best_by": "speed"}, InvalidValueError, "best_by must be one of 'accuracy', 'loss'"),
        ({"seed": -1}, InvalidValueError, "seed must be an integer >= 0"),
    ],
)
def test_mistakes_are_named(change, error, message):
    given = {"model": classifier(), "train": first_tokens(4, 0), "validation": first_tokens(4, 1)}
    with pytest.raises(error, match=message) as caught:
        ff.fit(**given | change)
    assert isinstance(caught.value, FastformerError)
