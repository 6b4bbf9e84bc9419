"""Arrays that are made once and used again: a training step allocates nothing large."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from fastformer.parameters import Array, aligned_zeros

# Ragged batches ask for many sizes; views are cheap to make again.
MOST_VIEWS = 4096

Apart = tuple[Array | None, ...]


def overlaps(array: Array, others: Iterable[Array | None]) -> bool:
    """Tell whether an array shares memory with any of some contiguous others."""
    return any(other is not None and np.may_share_memory(array, other) for other in others)


class Buffers:
    """Named arrays, each as large as the largest that was asked for under its name."""

    def __init__(self, dtype: Any) -> None:
        """Start with none; arrays are of the dtype."""
        self._dtype = dtype
        self._memory: dict[str, Array] = {}
        self._views: dict[tuple[Any, ...], Any] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "Buffers":
        """Return empty buffers: a copied layer's next forward fills them."""
        copied = memo[id(self)] = Buffers(self._dtype)
        return copied

    def get(self, name: str, *shape: int, apart: Apart = ()) -> Array:
        """Return the array of that name and shape; what it holds is left from its last use.

        Args:
            name, shape: of the array.
            apart: arrays that are read while this one is written; where it shares memory with one
                of them, another is returned.
        """
        key = (name, shape)
        view = self._views.get(key)
        if view is None:
            view = self._view(name, shape)
            self._views[key] = view
        if apart and overlaps(view, apart):
            return self.get(f"{name}, another", *shape, apart=apart)
        return view

    def stacked(
        self, name: str, count: int, rows: int, columns: int, apart: Apart = ()
    ) -> tuple[Array, ...]:
        """Return a (count * rows, columns) array, and after it its `count` parts of `rows` rows."""
        key = (name, count, rows, columns)
        views = self._views.get(key)
        if views is None:
            whole = self._view(name, (count * rows, columns))
            parts = [whole[part * rows : (part + 1) * rows] for part in range(count)]
            views = (whole, *parts)
            self._views[key] = views
        if apart and overlaps(views[0], apart):
            return self.stacked(f"{name}, another", count, rows, columns, apart)
        return views

    def overlap(self, array: Array) -> bool:
        """Tell whether an array shares memory with any of these."""
        return overlaps(array, self._memory.values())

    def _view(self, name: str, shape: tuple[int, ...]) -> Array:
        size = 1
        for length in shape:
            size *= length
        memory = self._memory.get(name)
        if memory is None or memory.size < size or len(self._views) >= MOST_VIEWS:
            self._views.clear()
            if memory is None or memory.size < size:
                memory = self._memory[name] = aligned_zeros(size, self._dtype)
        return memory[:size].reshape(shape)
