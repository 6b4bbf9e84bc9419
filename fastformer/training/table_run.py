"""Runs on tables of one's own: what those of labels and those of answers have in common."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from fastformer import checks
from fastformer.data.example_files import Pair, digest_of, read_files
from fastformer.data.table_task import TableTask
from fastformer.data.tokenizers import Tokenizer
from fastformer.errors import InvalidValueError
from fastformer.training.settings import TokenizedSettings
from fastformer.training.split_run import Parts, SplitSettings


@dataclass(frozen=True, kw_only=True)
class TableSettings(TokenizedSettings, SplitSettings):
    """The settings of a run on a table.

    Attributes:
        split: of the kind: (examples, task, seed) -> training, validation, test and notices.
    """

    split: ClassVar[Callable[..., tuple[list[Any], list[Any], list[Any], list[str]]]]

    task: TableTask

    @property
    def longest(self) -> int:
        """Examples are measured one by one, where their lines can be named."""
        return 1

    @property
    def longest_is(self) -> str:
        """What is so long."""
        return "examples"

    def text(self, text: str, right: str | None = None) -> Any:
        """Return a text, with its right answer if that is known, as the model reads it.

        Raises:
            ValueError: it cannot be read, or the model can never give that answer.
        """
        raise NotImplementedError

    def texts(self, pairs: Sequence[Pair]) -> list[Any]:
        """Return examples as the model reads them.

        Raises:
            ValueError: as of `text`; the message has the file and the line.
        """
        found = []
        for pair in pairs:
            try:
                found.append(self.text(pair.first, pair.second))
            except InvalidValueError as error:
                raise InvalidValueError(f"{pair.place}: {error}") from error
        return found

    def split_examples(self) -> Parts[Any]:
        """Read the examples, and split them: the same way every time.

        Raises:
            ValueError: the file has changed since the run began, or is gone.
        """
        pairs, _ = self.task.read()
        if digest_of(pairs) != self.task.digest:
            checks.fail(
                f"the examples of {', '.join(self.task.files)} have changed since the run began; "
                "put the old ones back, or start a new run"
            )
        split = type(self).split
        train, validation, test, notices = split(self.texts(pairs), self.task, self.seed)
        return Parts(train, validation, test, tuple(notices))

    def read_file(self, file: str | Path) -> list[Any]:
        """Return the examples of another file, with the same columns."""
        return self.texts(read_files([str(file)], self.task.columns, self.task.known)[0])


def read_table(
    files: Sequence[Path], task: TableTask, task_class: type[Any], *, both: bool
) -> tuple[list[Pair], Tokenizer, dict[str, Any]]:
    """Return the examples of a new run, their tokenizer, and the options of its task.

    Args:
        files: .csv or .jsonl.    task: its options.    task_class: what they become.
        both: whether both columns are texts that are read token by token.

    Raises:
        ValueError: a file that cannot be read, or an option that is not allowed.
    """
    options = asdict(task) | {"files": tuple(str(Path(file).absolute()) for file in files)}
    pairs, columns = task_class(**options).read()
    texts = [text for pair in pairs for text in (pair.first, pair.second)[: 1 + both]]
    tokenizer = task.tokenizer_of(texts)
    options |= dict(zip(task.column_names, columns, strict=True), digest=digest_of(pairs))
    return pairs, tokenizer, options
