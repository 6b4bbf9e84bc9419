"""A row of a program's table: an op with its operands, and the sizes that its letters stand for."""

from collections.abc import Iterable, Iterator
from typing import NoReturn

from fastformer.errors import InvalidValueError
from fastformer.kernels.op import Op, Operand
from fastformer.kernels.program import NO_SIZE
from fastformer.tensors import Axis, Tensor


def _divided(axis: Axis, by: Axis) -> Axis | None:
    """Return a length divided by another; None where it is not so many times the other."""
    if axis == by:
        return Axis(1)
    if by.factor == 0 or axis.factor % by.factor or by.size not in (NO_SIZE, axis.size):
        return None
    return Axis(axis.factor // by.factor, axis.size if by.size == NO_SIZE else NO_SIZE)


Field = Tensor | int | float | Axis | None


class Step:
    """A row of the table: an op, and what it is given.

    Attributes:
        op, title: and the name of the layer whose it is.
        operands: tensors, or None where they are absent, and numbers, by name.
        sizes: length of each letter of the op.    section: where it may not be joined across.
        segment: which it is in.    sharded: whether that is cut by sequences.
        copies: whether each shard has a copy of what it adds to.
    """

    def __init__(self, op: Op, title: str, operands: dict[str, Field], section: int) -> None:
        """Bind the letters of the op to the operands' axes."""
        self.op, self.title, self.operands, self.section = op, title, operands, section
        self.segment, self.sharded, self.copies = -1, False, False
        self.sizes = self._bound()

    def tensors(self, operands: Iterable[Operand]) -> Iterator[Tensor]:
        """Yield those tensors that are present."""
        for operand in operands:
            found = self.operands.get(operand.name)
            if isinstance(found, Tensor):
                yield found

    @property
    def reads(self) -> list[Tensor]:
        """What it reads, also what it adds to."""
        return [*self.tensors(self.op.reads), *self.tensors(o for o in self.op.writes if o.added)]

    @property
    def writes(self) -> list[Tensor]:
        """What it writes."""
        return list(self.tensors(self.op.writes))

    def _bound(self) -> dict[str, Axis]:
        """Return the axis that each letter stands for; raise where two differ."""
        found: dict[str, tuple[Axis, Tensor]] = {}
        pairs = []
        for operand in self.op.operands:
            given = self.operands.get(operand.name)
            if not isinstance(given, Tensor):
                continue
            if len(given.axes) != len(operand.axes or ()):
                self._fail(f"{given} is given for {operand.name}[{','.join(operand.axes or ())}]")
            for letters, axis in zip(operand.axes or (), given.axes, strict=True):
                pairs.append((letters, axis, given))
        # Single letters first: with them, one that is unknown of a product is known.
        for letters, axis, given in sorted(pairs, key=lambda pair: len(pair[0])):
            rest, unknown = axis, ""
            for letter in letters if not letters.isdigit() else ():
                if letter in found:
                    divided = _divided(rest, found[letter][0])
                    if divided is None:
                        self._fail_to_bind(letters, axis, given, found)
                    else:
                        rest = divided
                elif unknown:
                    self._fail(f"neither {unknown} nor {letter} of {letters} is known")
                else:
                    unknown = letter
            if unknown:
                found[unknown] = rest, given
            elif rest != Axis(int(letters) if letters.isdigit() else 1):
                self._fail_to_bind(letters, axis, given, found)
        return {letter: axis for letter, (axis, _) in found.items()}

    def _fail_to_bind(
        self, letters: str, axis: Axis, given: Tensor, found: dict[str, tuple[Axis, Tensor]]
    ) -> None:
        """Raise for an axis that is not as long as its letters are elsewhere."""
        others = [f"{x} is {found[x][0]} in {found[x][1]}" for x in letters if x in found]
        if not others:
            self._fail(f"an axis of {given} is {axis}, where it must be {letters}")
        self._fail(f"{letters} is {axis} in {given}, but {', '.join(others)}")

    def _fail(self, what: str) -> NoReturn:
        raise InvalidValueError(f"{self.title or 'program'}: {self.op.name}: {what}")

    def produced_by_shards(self, steps: "list[Step]") -> bool:
        """Tell whether what it reads first was left by an op that is cut by shards."""
        first = next(self.tensors(self.op.reads))
        return any(step.sharded for step in steps if first in step.writes)

    def length(self, letters: str) -> Axis:
        """Return the length of an axis that is named by letters."""
        if letters.isdigit():
            return Axis(int(letters))
        factor, size = 1, NO_SIZE
        for letter in letters:
            if letter not in self.sizes:
                self._fail(f"no operand that is given tells how long {letter} is")
            axis = self.sizes[letter]
            factor, size = factor * axis.factor, axis.size or size
        return Axis(factor, size)
