"""The estimator for scikit-learn: it learns, is asked as others are, and passes their checks."""

import copy
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import use_one_thread

import fastformer as ff
from fastformer.errors import InvalidTypeError, InvalidValueError

TOPICS = {
    "food": "bread cheese soup apple rice cake".split(),
    "sport": "football tennis match goal team race".split(),
    "travel": "train plane hotel ticket beach passport".split(),
    "weather": "rain snow sun wind storm fog".split(),
}
FRAMES = (
    "I like the {0} today", "the {1} was good, and so was the {0}", "is it the {0} or the {1}?",
    "nobody wants the {0} now", "what a {0}!", "my friend talks about {1} with {0}",
)  # fmt: skip
SMALL: dict[str, Any] = {"embed_dim": 16, "num_heads": 2, "ffn_dim": 16, "random_state": 1}
QUICK = SMALL | {"epochs": 4, "learning_rate": 1e-2}
# Of the checks of scikit-learn that fail, why.
EXPECTED = {
    "check_class_weight_classifiers": "its columns are measures around 0, and no ids; "
    "test_what_a_class_counts is in its place"
}


@pytest.fixture
def classifier() -> Any:
    """Return the class."""
    from fastformer.sklearn import TransformerClassifier

    use_one_thread()
    return TransformerClassifier


def sentences(count: int, seed: int) -> tuple[list[str], list[str]]:
    """Return sentences, and what each is about."""
    random = np.random.default_rng(seed)
    labels = random.choice(list(TOPICS), count).tolist()
    pairs = [random.choice(TOPICS[label], 2, replace=False) for label in labels]
    return [random.choice(FRAMES).format(*pair) for pair in pairs], labels


def first_ids(count: int, seed: int) -> tuple[list[list[int]], np.ndarray]:
    """Return sequences of ids of several lengths, and the first of each."""
    random = np.random.default_rng(seed)
    sequences = [random.integers(3, 6, random.integers(1, 5)).tolist() for _ in range(count)]
    return sequences, np.array([sequence[0] for sequence in sequences])


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.delitem(sys.modules, "fastformer.sklearn", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'fastformer\[sklearn\]'"):
        import fastformer.sklearn  # noqa: F401


def test_fastformer_itself_does_not_import_it() -> None:
    code = (
        "import fastformer, sys; fastformer.fit, fastformer.load; print('sklearn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_check_of_scikit_learn_that_applies_is_passed(classifier: Any) -> None:
    from sklearn.utils.estimator_checks import check_estimator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = check_estimator(
            classifier(epochs=5), expected_failed_checks=EXPECTED, on_fail=None, on_skip=None
        )
    failed = {check["check_name"]: check for check in found if check["status"] == "failed"}
    assert not failed
    assert {c["check_name"] for c in found if c["status"] == "xfail"} == EXPECTED.keys()
    assert sum(check["status"] == "passed" for check in found) >= 50


@pytest.mark.parametrize("seed", [0, 1])
def test_short_sentences_are_learned_with_the_defaults(classifier: Any, seed: int) -> None:
    X, y = sentences(600, seed)
    model = classifier(random_state=seed).fit(X, y)
    unseen = [pair for pair in zip(*sentences(500, seed + 10), strict=True) if pair[0] not in X]
    texts, labels = zip(*unseen, strict=True)
    assert len(texts) > 100 and model.score(texts, labels) >= 0.99
    assert model.classes_.tolist() == sorted(TOPICS) and not hasattr(model, "n_features_in_")
    probabilities = model.predict_proba(texts)
    assert probabilities.shape == (len(texts), 4)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert model.predict(["the rain", "unknown words", ""]).shape == (3,)
    assert model.history_[-1]["train_loss"] < model.history_[0]["train_loss"]


@pytest.mark.parametrize("tokenizer", ["words", "bytes"])
def test_the_model_reads_the_same_texts_by_itself(
    classifier: Any, tokenizer: str, tmp_path: Path
) -> None:
    X, y = sentences(60, 0)
    fitted = classifier(tokenizer=tokenizer, **QUICK).fit(np.array(X, object), y)
    fitted.model_.save(tmp_path / "model.safetensors")
    model = ff.load(tmp_path / "model.safetensors")
    logits = model.forward(ff.pack([model.tokenizer.encode(text) for text in X[:5]]))
    found = [model.labels[row] for row in logits.argmax(axis=1)]
    assert found == fitted.predict(X[:5]).tolist()


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_sequences_of_ids_are_learned(classifier: Any, backend: str) -> None:
    X, y = first_ids(200, 0)
    fitted = classifier(backend=backend, pooling="first", **QUICK | {"epochs": 8}).fit(X, y)
    others, labels = first_ids(100, 1)
    assert fitted.score(others, labels) > 0.95
    assert fitted.classes_.tolist() == [3, 4, 5] and fitted.model_.labels == ("3", "4", "5")
    logits = fitted.model_.forward(ff.pack(others))
    assert (fitted.classes_[logits.argmax(axis=1)] == fitted.predict(others)).all()
    # Ids that were not trained mean nothing, whichever they are.
    rows = fitted.predict_proba([[3, 0], [3, 2], [3, 99], [3, 10**15]])
    np.testing.assert_allclose(rows, np.tile(rows[0], (4, 1)), 1e-6)


def test_an_array_has_its_number_of_columns_and_lists_have_none(classifier: Any) -> None:
    X, y = np.array([[1, 2, 0], [2, 1, 0]] * 20), [True, False] * 20
    fitted = classifier(**QUICK).fit(X, y)
    assert fitted.n_features_in_ == 3
    assert fitted.predict(X.astype(float)).tolist() == y
    with pytest.raises(ValueError, match="X has 2 features, but .* is expecting 3"):
        fitted.predict(X[:, 1:])
    assert fitted.predict([[1, 2], [2, 1, 0, 0]]).shape == (2,)
    assert not hasattr(fitted.fit([*X.tolist(), [1]], [*y, True]), "n_features_in_")


def test_longer_sequences_are_read_from_their_beginning(classifier: Any) -> None:
    fitted = classifier(max_seq_len=3, **QUICK).fit([[1, 2, 3, 4], [4, 3, 2, 1]] * 10, [0, 1] * 10)
    found = fitted.predict_proba([[1, 2, 3], [1, 2, 3, 4, 1, 2, 3]])
    np.testing.assert_array_equal(*found)
    fitted.set_params(max_seq_len=1)
    np.testing.assert_array_equal(fitted.predict_proba([[1, 2, 3]])[0], found[0])


def test_what_a_class_counts(classifier: Any) -> None:
    """Nothing tells the labels apart, and there are three times as many of one."""
    X, y = [[1, 2]] * 80, ["few", "many", "many", "many"] * 20
    shares = {}
    for weight in (None, "balanced", {"few": 27, "many": 1}):
        fitted = classifier(class_weight=weight, **SMALL | {"learning_rate": 1e-2}).fit(X, y)
        shares[str(weight)] = fitted.predict_proba([[1, 2]])[0, 0]
    np.testing.assert_allclose(list(shares.values()), [0.25, 0.5, 0.9], atol=0.06)


def test_the_same_random_state_gives_the_same_model(classifier: Any) -> None:
    X, y = sentences(60, 0)
    found = [
        classifier(**QUICK | {"random_state": state}).fit(X, y).predict_proba(X)
        for state in (1, 1, 2)
    ]
    assert (found[0] == found[1]).all() and (found[0] != found[2]).any()


def test_it_is_copied_and_pickled(classifier: Any) -> None:
    from sklearn.base import clone
    from sklearn.exceptions import NotFittedError

    X, y = sentences(60, 0)
    fitted = classifier(**QUICK).fit(X, y)
    for other in (pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)):
        assert (other.predict_proba(X) == fitted.predict_proba(X)).all()
        assert other.model_.labels == fitted.model_.labels
    other = clone(fitted)
    assert other.get_params() == fitted.get_params()
    for unfitted in (other, pickle.loads(pickle.dumps(other))):
        with pytest.raises(NotFittedError):
            unfitted.predict(X)


def test_searches_and_pipelines_take_it(classifier: Any) -> None:
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, OrdinalEncoder

    X, y = sentences(120, 0)
    learner = classifier(**QUICK | {"epochs": 12})
    assert cross_val_score(learner, X, y, cv=2, error_score="raise").mean() > 0.7
    search = GridSearchCV(
        classifier(**QUICK), {"epochs": [1, 12], "pooling": ["mean"]}, cv=2, error_score="raise"
    ).fit(X, y)
    assert search.best_params_ == {"epochs": 12, "pooling": "mean"}
    lower = FunctionTransformer(lambda texts: [text.lower() for text in texts])
    assert make_pipeline(lower, classifier(**QUICK)).fit(X, y).predict(["THE RAIN"]).shape == (1,)
    table = np.array([["a", "x"], ["b", "x"]] * 20, object)
    pipeline = make_pipeline(OrdinalEncoder(), classifier(**QUICK))
    assert pipeline.fit(table, [0, 1] * 20).score(table, [0, 1] * 20) == 1


@pytest.mark.parametrize(
    ("options", "X", "y", "error", "message"),
    [
        ({"tokenizer": "word"}, ["a"], [0], InvalidValueError, "tokenizer must be one of 'words'"),
        ({"vocab_size": 1}, ["a"], [0], InvalidValueError, "vocab_size must be an integer >= 2"),
        ({"max_seq_len": 0}, ["a"], [0], InvalidValueError, "max_seq_len must be an integer >= 1"),
        ({"validation_fraction": 1}, ["a"], [0], InvalidValueError, "validation_fraction must be"),
        ({"pooling": "none"}, ["a"], [0], InvalidValueError, "pooling must be .* of whole"),
        ({"epochs": 0}, ["a"], [0], InvalidValueError, "epochs must be an integer >= 1"),
        ({"num_heads": 3}, ["a"], [0], InvalidValueError, "num_heads must divide embed_dim"),
        ({}, "a text", [0], InvalidTypeError, "X must be a list of texts, got one text"),
        ({}, ["a", 3], [0, 1], InvalidTypeError, "X must be texts, got int at index 1: 3"),
        ({}, [[1], []], [0, 1], InvalidValueError, r"X\[1\] is empty"),
        ({}, [[1], [-1]], [0, 1], InvalidValueError, r"X\[1\] must be >= 0, got -1"),
        ({}, [[1], [0.5]], [0, 1], InvalidTypeError, r"X\[1\] must be .*integers"),
        ({}, np.array([[1], [0.5]]), [0, 1], InvalidValueError, "got 0.5 in row 1, column 0"),
        ({}, [[1], [10**9]], [0, 1], InvalidValueError, "ids must be from 0 to 10000000, got 1000"),
        ({}, [], [], ValueError, "Expected 2D array"),
        ({}, ["a", "b"], None, InvalidValueError, "requires y to be passed"),
        ({}, ["a", "b"], [0], InvalidValueError, "y must have 2 labels, .* got 1"),
        ({}, ["a", "b"], [0.5, 1.5], ValueError, "Unknown label type"),
        ({}, ["a", "b"], [[0, 1], [1, 0]], ValueError, "y should be a 1d array"),
    ],
)
def test_mistakes_are_named(
    classifier: Any, options: Any, X: Any, y: Any, error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        classifier(**options).fit(X, y)


def test_texts_are_no_ids(classifier: Any) -> None:
    with pytest.raises(InvalidValueError, match="X must be texts, as fit was given, got sequences"):
        classifier(**QUICK).fit(["a", "b"], [0, 1]).predict([[1, 2]])
    with pytest.raises(InvalidValueError, match="X must be sequences of ids, .* got texts"):
        classifier(**QUICK).fit([[1], [2]], [0, 1]).predict(["a"])


def test_an_interrupt_ends_a_search_too(classifier: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    from sklearn.model_selection import cross_val_score

    step = ff.AdamW.step
    monkeypatch.setattr(
        ff.AdamW, "step", lambda self: (step(self), signal.raise_signal(signal.SIGINT))[0]
    )
    X, y = first_ids(40, 0)
    with pytest.raises(KeyboardInterrupt):
        cross_val_score(classifier(**QUICK), X, y, cv=2)
