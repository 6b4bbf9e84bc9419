"""Texts with labels, of a person's own: reading them, and splitting them without leaks."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Final

from fastformer import checks
from fastformer.data.example_files import Pair
from fastformer.data.splitting import FEWEST, held_out, part_sizes
from fastformer.data.table_task import TableTask, column_field
from fastformer.data.tokenizers import Tokenizer

TEXT_COLUMNS: Final = ("text", "sentence", "tokens", "input")
LABEL_COLUMNS: Final = ("label", "class", "category", "target")
# Labels beyond these are texts in the wrong column.
MOST_LABELS: Final = 10_000


@dataclass(frozen=True, kw_only=True)
class LabelledTask(TableTask):
    """Texts of which each has one label.

    Attributes:
        labels: their names, in the order of their numbers.

    Raises:
        ValueError, TypeError: a value that is not allowed; the message names it.
    """

    column_names: ClassVar[tuple[str, str]] = ("text_column", "label_column")
    known: ClassVar[tuple[Sequence[str], Sequence[str]]] = (TEXT_COLUMNS, LABEL_COLUMNS)

    labels: tuple[str, ...] = ()
    text_column: str = column_field("texts", TEXT_COLUMNS, "first")
    label_column: str = column_field("labels", LABEL_COLUMNS, "second")
    balance: bool = field(
        default=False,
        metadata={"help": "let each label count alike in the loss, however rare it is"},
    )

    def __post_init__(self) -> None:
        """Check every value."""
        super().__post_init__()
        checks.boolean("balance", self.balance)
        if not all(isinstance(label, str) for label in self.labels):
            checks.fail(f"labels must be names, got {self.labels!r:.200}")

    def read(self) -> tuple[list[Pair], tuple[str, str]]:
        """Return the examples of the files, and the names of their columns.

        Raises:
            ValueError: as of `read_pairs`; or fewer than two labels, or far too many.
        """
        pairs, columns = super().read()
        labels = {pair.second for pair in pairs}
        if not 2 <= len(labels) <= MOST_LABELS:
            checks.fail(
                f"the examples must have 2 to {MOST_LABELS:,} different labels, got {len(labels):,}"
                f", such as {min(labels)!r:.60}; choose their column with --label-column"
            )
        return pairs, columns


@dataclass(frozen=True)
class LabelledText:
    """A text with its label, as a model reads it. Equal ones are equal as dictionary keys.

    Attributes:
        text: as it was written.    label: None where nobody has said it.
        tokenizer: of the model.    longest: tokens beyond these are not read.
    """

    text: str
    label: str | None
    tokenizer: Tokenizer = field(compare=False, repr=False)
    longest: int = field(compare=False, repr=False)

    @property
    def group(self) -> str:
        """The label: answers are counted by it."""
        return self.label or ""

    @cached_property
    def whole(self) -> tuple[int, ...]:
        """The ids of the whole text.

        Raises:
            ValueError: a character that the tokenizer has not.
        """
        return tuple(self.tokenizer.encode(self.text).tolist())

    def ids(self) -> list[int]:
        """Return the ids of what the model reads: the text's beginning, if it is long."""
        return list(self.whole[: self.longest])

    def tokens(self) -> list[str]:
        """Return the tokens that the model reads."""
        return [self.tokenizer.token(number) for number in self.ids()]

    def answer(self) -> str | None:
        """Return the label."""
        return self.label

    def __str__(self) -> str:
        """Return the text."""
        return self.text


def split_labelled(
    texts: Sequence[LabelledText], task: LabelledTask, seed: int
) -> tuple[list[LabelledText], list[LabelledText], list[LabelledText], list[str]]:
    """Return training, validation and test, and what a person should know of them.

    Every input, which is what the model reads, is in one of the parts alone. Each part has its
    share of each label. Labels of fewer than three inputs are all trained on.
    """
    labels: dict[tuple[int, ...], str | None] = {}
    for one in texts:
        labels.setdefault(tuple(one.ids()), one.label)
    counts = Counter(labels.values())
    sizes = [
        part_sizes(counts[label], task.validation_fraction, task.test_fraction)
        for label in dict.fromkeys(labels.values())
    ]
    apart = held_out(list(labels), list(labels.values()), sizes, seed, "labelled split")
    train = [one for one in texts if tuple(one.ids()) not in apart]
    kept: dict[str, dict[tuple[int, ...], LabelledText]] = {"validation": {}, "test": {}}
    for one in texts:
        ids = tuple(one.ids())
        if ids in apart:
            kept[apart[ids]].setdefault(ids, one)
    if not kept["validation"] or not kept["test"]:
        checks.fail(
            f"there are too few examples to split: no label has {FEWEST} different texts, one each "
            "for training, validation and test"
        )
    notices = []
    rare = [str(label) for label, count in counts.items() if count < FEWEST]
    if rare:
        notices.append(
            f"these labels have fewer than {FEWEST} different texts, and so are trained on but not "
            f"tested: {', '.join(rare)!s:.200}"
        )
    repeats = len(texts) - len(labels)
    if repeats:
        notices.append(
            f"{repeats:,} of {len(texts):,} texts are there again; none is on two sides of the "
            "split"
        )
    cut = sum(len(one.whole) > one.longest for one in texts)
    if cut:
        notices.append(
            f"{cut:,} of {len(texts):,} texts are longer than the {one.longest} tokens that the "
            "model reads (--max-seq-len): their ends are not read"
        )
    return train, list(kept["validation"].values()), list(kept["test"].values()), notices
