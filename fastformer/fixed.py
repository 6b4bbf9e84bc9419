"""Objects whose attributes stay as their constructor made them: kernels trust what was checked."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from fastformer.errors import ReadOnlyError


class _MadeOnce(type):
    """Notes which attributes an object has when it is made."""

    def __call__(cls, *arguments: Any, **named: Any) -> Any:
        """Make the object."""
        made = super().__call__(*arguments, **named)
        public = [name for name in vars(made) if not name.startswith("_")]
        made.__dict__["_made_with"] = frozenset(public)
        return made


class Fixed(metaclass=_MadeOnce):
    """An object whose public attributes cannot be set, but for those that `settable` checks.

    A private attribute, and one that the object has not, can be set as usual. The object itself
    writes to `self.__dict__` what changes: that is no slower.

    Attributes:
        settable: name to a function that returns the value to keep, or raises.
        left: names of what only `forward` sets, and what it has not before.
    """

    settable: ClassVar[Mapping[str, Callable[[Any], Any]]] = {}
    left: ClassVar[tuple[str, ...]] = ()

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute that may be set.

        Raises:
            ReadOnlyError: another one.
            TypeError, ValueError: a value that is not allowed.
        """
        check = self.settable.get(name)
        if check is not None:
            value = check(value)
        elif not name.startswith("_") and (name in self.left or self._was_made_with(name)):
            raise ReadOnlyError(self._cannot_be_set(name))
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        """Refuse where an attribute cannot be set.

        Raises:
            ReadOnlyError: it cannot.
        """
        if name in self.settable or name in self.left or self._was_made_with(name):
            raise ReadOnlyError(self._cannot_be_set(name))
        object.__delattr__(self, name)

    def _was_made_with(self, name: str) -> bool:
        return name in self.__dict__.get("_made_with", ())

    def _cannot_be_set(self, name: str) -> str:
        owner = type(self).__name__
        if name in self.left:
            return f"{owner}.{name} is what forward leaves, and cannot be set"
        return f"{owner}.{name} is fixed when the {owner} is made; make another one"
