"""A classifier of texts, or of sequences of ids, for scikit-learn (extra `sklearn`)."""

from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from fastformer import checks
from fastformer.batch import Ids, PackedBatch
from fastformer.data.tokenizers import new_tokenizer
from fastformer.errors import InvalidTypeError, InvalidValueError, MissingLibraryError
from fastformer.models.config import TransformerConfig
from fastformer.models.transformer import Transformer
from fastformer.training.classifier_run import forget_untrained
from fastformer.training.fit import fit
from fastformer.training.loop import TrainingInterrupted
from fastformer.training.steps import predict_classes

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils import check_random_state, compute_class_weight
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import (
        assert_all_finite,
        check_is_fitted,
        check_non_negative,
        column_or_1d,
        validate_data,
    )
except ImportError as error:
    raise MissingLibraryError(
        "fastformer.sklearn needs scikit-learn: pip install 'fastformer[sklearn]'"
    ) from error

# Those that can read any text.
TOKENIZERS = ("words", "bytes", "bpe")
# Beyond it an id is no number of a token, and an embedding that has it would fill the memory.
MOST_IDS = 10_000_000


_MODEL = "embed_dim", "num_layers", "num_heads", "ffn_dim", "max_seq_len", "pooling", "dropout"
_TRAINING = "epochs", "batch_size", "optimizer", "learning_rate", "weight_decay", "patience"


class TransformerClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A small transformer that learns labels of texts or of sequences of ids.

    X is a list or array of texts; or a list of lists of ids >= 0, each of its own length; or a 2-D
    array of ids, with a sequence in each row. Labels are whatever scikit-learn's classifiers take.
    Words and ids that training never had are read as one unknown token.

    Attributes:
        classes_: (V,) the labels, sorted.
        n_features_in_: columns of X, where `fit` was given sequences of one length.
        model_: the trained `Transformer`; with `model_.tokenizer` where X are texts, and the labels
            as texts in `model_.labels`.
        history_: a record of each epoch, as `ff.fit` returns it.
    """

    tokenizer_: Any

    def __init__(
        self,
        *,
        tokenizer: str = "words",
        vocab_size: int = 10_000,
        max_seq_len: int = 256,
        embed_dim: int = 64,
        num_layers: int = 1,
        num_heads: int = 4,
        ffn_dim: int = 128,
        pooling: str = "mean",
        dropout: float = 0.2,
        epochs: int = 20,
        batch_size: int = 16,
        optimizer: str = "adamw",
        learning_rate: float = 3e-3,
        weight_decay: float = 0.01,
        class_weight: Any = None,
        validation_fraction: float = 0.1,
        patience: int = 10,
        random_state: Any = None,
        backend: str = "numba",
    ) -> None:
        """Keep the settings, which `fit` checks.

        Args:
            tokenizer: "words", "bytes" or "bpe": what the tokens of texts are.
            vocab_size: most tokens that "words" and "bpe" know.
            max_seq_len: tokens that are read of each sequence, from its beginning.
            embed_dim, num_layers, num_heads, ffn_dim, pooling, dropout: of the model, as of
                `TransformerConfig`.
            epochs, batch_size, optimizer, learning_rate, weight_decay: of the training, as of
                `ff.fit`.
            class_weight: how much each class counts: a dictionary from labels, "balanced", or None.
            validation_fraction: the share of the examples that are not trained on, and by whose
                loss the best epoch is chosen. Where that is less than one example, as of 0, all are
                trained on and chosen by.
            patience: epochs without a lower loss of those after which training stops; 0 for never.
            random_state: an integer gives the same model each time.
            backend: "numba" or "reference".
        """
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.max_seq_len = max_seq_len
        self.embed_dim = embed_dim
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.ffn_dim = ffn_dim
        self.pooling = pooling
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.class_weight = class_weight
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.random_state = random_state
        self.backend = backend

    def fit(self, X: Any, y: Any) -> "TransformerClassifier":
        """Learn the labels y, (B,), of B sequences.

        Returns:
            Itself.

        Raises:
            TypeError, ValueError: a setting or data that are not allowed.
            KeyboardInterrupt: Ctrl-C came, or a signal to end.
        """
        self._check_settings()
        self.__dict__.pop("model_", None)  # of before: what follows is no more its own
        read = self._read(X, reset=True)
        targets = self._read_labels(y, len(read))
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        train, validation = self._parts(targets, seed)
        vocab_size = self._learn_tokens([read[index] for index in train])
        inputs, weights = self._packed(read), None
        if self.class_weight is not None:
            weights = compute_class_weight(
                self.class_weight, classes=self.classes_, y=self.classes_[targets]
            )
        trained = inputs.select(train)
        model = self._new_model(vocab_size, seed, trained)
        try:
            self.history_ = fit(
                model,
                (trained, targets[train]),
                (inputs.select(validation), targets[validation]),
                class_weights=weights,
                best_by="loss",
                seed=seed,
                **{name: getattr(self, name) for name in _TRAINING},
            )
        except TrainingInterrupted as error:
            # A search over settings goes on after any other exception.
            raise KeyboardInterrupt(str(error)) from error
        self._keep(model)
        return self

    def predict_proba(self, X: Any) -> npt.NDArray[np.float64]:
        """Return the probability of each label, (B, V), in the order of `classes_`."""
        check_is_fitted(self, "model_")
        inputs = self._packed(self._read(X, reset=False))
        logits = predict_classes(self.model_, inputs).astype(np.float64)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities: npt.NDArray[np.float64] = exponentials / exponentials.sum(
            axis=1, keepdims=True
        )
        return probabilities

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """Return the likeliest label of each sequence, (B,)."""
        probabilities = self.predict_proba(X)
        labels: npt.NDArray[Any] = self.classes_[probabilities.argmax(axis=1)]
        return labels

    def _check_settings(self) -> None:
        """Raise for a setting that neither the model nor the training checks."""
        checks.choice("tokenizer", self.tokenizer, TOKENIZERS)
        checks.integer("vocab_size", self.vocab_size, 2)
        checks.integer("max_seq_len", self.max_seq_len, 1)
        checks.number("validation_fraction", self.validation_fraction, at_least=0, below=1)
        if self.pooling == "none":
            checks.fail(
                "pooling must be 'first', 'mean' or 'last' for labels of whole sequences, got "
                "'none'; use ff.fit for labels of tokens"
            )

    def _read(self, X: Any, *, reset: bool) -> list[Any]:
        """Return the texts, or the ids of each sequence.

        Args:
            reset: whether to note the number of columns, or else to hold X to it.
        """
        elements = _elements(X)
        if elements is None:
            table = validate_data(self, X, reset=reset)
            return list(_ids_of(table, type(self).__name__))
        if reset:
            lengths = {len(one) for one in elements if not isinstance(one, str)}
            for name in ("n_features_in_", "feature_names_in_"):
                self.__dict__.pop(name, None)
            if len(lengths) == 1:
                self.n_features_in_ = lengths.pop()
        return elements

    def _read_labels(self, y: Any, count: int) -> Ids:
        """Note the labels, and return the number of each sequence's, (B,)."""
        if y is None:
            checks.fail(f"{type(self).__name__} requires y to be passed, but the target y is None")
        labels = column_or_1d(y, warn=True)
        assert_all_finite(labels, input_name="y")
        check_classification_targets(labels)
        if len(labels) != count:
            checks.fail(f"y must have {count} labels, one for each sequence, got {len(labels)}")
        self.classes_, targets = np.unique(labels, return_inverse=True)
        return targets.astype(np.int64)

    def _parts(self, targets: Ids, seed: int) -> tuple[Ids, Ids]:
        """Return which sequences are trained on, and which validate: of all labels alike."""
        count = targets.size
        held = int(count * self.validation_fraction)
        order = np.random.default_rng(seed).permutation(count)
        if not held:
            return order, order
        order = order[np.argsort(targets[order], kind="stable")]
        chosen = ((np.arange(held) + 0.5) * count / held).astype(np.int64)
        return np.delete(order, chosen), order[chosen]

    def _learn_tokens(self, read: list[Any]) -> int:
        """Note which tokens there are, and return how many."""
        self._most, self.tokenizer_ = self.max_seq_len, None
        if not isinstance(read[0], str):
            largest = max(int(ids.max()) for ids in read)
            if largest > MOST_IDS:
                checks.fail(f"ids must be from 0 to {MOST_IDS}, got {largest}; number the tokens")
            self._unknown = largest + 1
            return self._unknown + 1
        self.tokenizer_, self._unknown = new_tokenizer(self.tokenizer, read, self.vocab_size), 0
        return int(self.tokenizer_.vocab_size)

    def _new_model(self, vocab_size: int, seed: int, trained: PackedBatch) -> Transformer:
        """Return a model, for which tokens that it will never have seen mean nothing."""
        config = TransformerConfig(
            vocab_size=vocab_size, num_classes=self.classes_.size, norm="pre",
            **{name: getattr(self, name) for name in _MODEL},
        )  # fmt: skip
        model = Transformer(config, seed=seed, backend=self.backend)
        forget_untrained(model, trained)
        return model

    def _packed(self, read: list[Any]) -> PackedBatch:
        """Return the tokens that are read of each sequence."""
        kinds = "sequences of ids", "texts"
        given, fitted = isinstance(read[0], str), self.tokenizer_ is not None
        if given != fitted:
            checks.fail(f"X must be {kinds[fitted]}, as fit was given, got {kinds[given]}")
        tokens = [self._tokens(one)[: self._most] for one in read]
        offsets = np.cumsum([0, *(ids.size for ids in tokens)])
        return PackedBatch(np.concatenate(tokens), offsets)

    def _tokens(self, one: Any) -> Ids:
        """Return the numbers of a sequence's tokens, one at least: an empty text has one too."""
        if self.tokenizer_ is None:
            known: Ids = np.minimum(one, self._unknown)
            return known
        ids: Ids = self.tokenizer_.encode(one or " ")
        return ids if ids.size else np.array([self._unknown])

    def _keep(self, model: Transformer) -> None:
        """Keep a trained model, with what people read its answers by."""
        model.tokenizer = self.tokenizer_
        model.labels = tuple(map(str, self.classes_.tolist()))
        self.model_ = model

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: of the model its settings and weights."""
        state = dict(super().__getstate__())
        if "model_" in state:
            model = state["model_"]
            state["model_"] = asdict(model.config), model.state_dict(), model.ops.name
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make the model anew."""
        state = dict(state)
        kept = state.pop("model_", None)
        super().__setstate__(state)
        if kept is not None:
            config, weights, backend = kept
            model = Transformer(TransformerConfig(**config), backend=backend)
            model.load_state_dict(weights)
            self._keep(model)

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn is told: X are texts, or categories, numbered from 0."""
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.categorical = True
        tags.input_tags.positive_only = True
        return tags


def _elements(X: Any) -> list[Any] | None:
    """Return the texts or the sequences of ids of a list; None for a table of numbers."""
    if isinstance(X, str | bytes):
        raise InvalidTypeError(f"X must be a list of texts, got one text: {X!r:.60}")
    if not isinstance(X, list | tuple):
        # A column of texts or lists, such as pandas has; numbers are a table.
        if getattr(X, "ndim", 0) != 1 or np.asarray(X).dtype.kind not in "OUT":
            return None
        X = np.asarray(X).tolist()
    if not X or not isinstance(X[0], str | list | tuple | np.ndarray):
        return None
    if isinstance(X[0], str):
        for index, one in enumerate(X):
            if not isinstance(one, str):
                raise InvalidTypeError(
                    f"X must be texts, got {type(one).__name__} at index {index}: {one!r:.60}"
                )
        return list(X)
    sequences = [checks.id_array(f"X[{index}]", one) for index, one in enumerate(X)]
    for index, ids in enumerate(sequences):
        if not ids.size:
            raise InvalidValueError(f"X[{index}] is empty; each must have at least one id")
    return sequences


def _ids_of(table: npt.NDArray[Any], owner: str) -> Ids:
    """Return a table of numbers as ids."""
    check_non_negative(table, owner)
    wrong = (table != np.floor(table)) | (table > MOST_IDS)
    if wrong.any():
        row, column = (int(places[0]) for places in wrong.nonzero())
        raise InvalidValueError(
            f"X must be ids, whole numbers from 0 to {MOST_IDS}, got {table[row, column]} in row "
            f"{row}, column {column}"
        )
    return table.astype(np.int64)
