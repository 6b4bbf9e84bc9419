"""Buffers: memory is made once per name and used again, whatever sizes are asked for."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import (
    BACKENDS,
    KINDS,
    LARGE_LENGTHS,
    dlogits_for,
    forward_and_backward,
    large_model,
    make_batch,
    make_model,
    same_bits,
)

from fastformer.buffers import MOST_VIEWS, Buffers

# Bytes. One buffer of a feed-forward layer of the large model has 276,480.
SMALL = 100_000
SHAPES = st.lists(st.integers(0, 6), min_size=0, max_size=3)


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_same_request_gives_the_same_array(dtype):
    buffers = Buffers(dtype)
    first = buffers.get("out", 3, 5)
    assert (first.shape, first.dtype) == ((3, 5), np.dtype(dtype))
    assert first.flags.c_contiguous and first.flags.writeable and address(first) % 64 == 0
    assert buffers.get("out", 3, 5) is first
    stacked = buffers.stacked("qkv", 3, 4, 5)
    assert buffers.stacked("qkv", 3, 4, 5) is stacked


def test_smaller_ones_use_the_memory_that_is_there():
    buffers = Buffers("float32")
    large = buffers.get("out", 8, 5)
    for rows in (7, 1, 0, 8):
        view = buffers.get("out", rows, 5)
        assert view.shape == (rows, 5)
        assert rows == 0 or address(view) == address(large)
    assert buffers.get("out", 8, 5) is large
    assert address(buffers.get("out", 5, 8)) == address(large)


def test_larger_ones_move_and_old_arrays_stay_whole():
    buffers = Buffers("float32")
    small = buffers.get("out", 2, 3)
    small[...] = 7
    large = buffers.get("out", 4, 3)
    large[...] = 1
    assert not np.shares_memory(small, large) and (small == 7).all()
    again = buffers.get("out", 2, 3)
    assert address(again) == address(large), "the old memory is not kept for small requests"


def test_names_do_not_share_memory():
    buffers = Buffers("float64")
    arrays = [buffers.get(name, 3, 3) for name in "abc"] + [buffers.stacked("d", 2, 3, 3)[0]]
    for index, left in enumerate(arrays):
        assert not any(np.shares_memory(left, right) for right in arrays[index + 1 :])


@given(count=st.integers(1, 4), rows=st.integers(0, 5), columns=st.integers(1, 5))
def test_stacked_parts_are_the_whole(count, rows, columns):
    whole, *parts = Buffers("float32").stacked("kv", count, rows, columns)
    assert whole.shape == (count * rows, columns) and len(parts) == count
    whole[...] = np.arange(whole.size).reshape(whole.shape)
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert all(part.flags.c_contiguous and part.shape == (rows, columns) for part in parts)


@given(requests=st.lists(st.tuples(st.sampled_from("ab"), SHAPES), min_size=1, max_size=20))
def test_any_order_of_requests(requests):
    buffers = Buffers("float32")
    largest = {"a": 0, "b": 0}
    for name, shape in requests:
        view = buffers.get(name, *shape)
        largest[name] = max(largest[name], view.size)
        assert view.shape == tuple(shape)
        assert buffers._memory[name].size == largest[name]
        view[...] = ord(name)
        assert (view == ord(name)).all()


def test_views_of_many_shapes_do_not_pile_up():
    buffers = Buffers("float32")
    memory = buffers.get("out", MOST_VIEWS + 10)
    for rows in range(MOST_VIEWS + 5):
        assert buffers.get("out", rows).size == rows
    assert len(buffers._views) <= MOST_VIEWS
    assert address(buffers.get("out", MOST_VIEWS + 10)) == address(memory)


def addresses(layer):
    """Return where all memory of a layer's and its parts' buffers is."""
    found = {}
    for buffers in (layer.buffers, layer.scratch):
        found |= {(id(buffers), name): id(memory) for name, memory in buffers._memory.items()}
    for _, child in layer.children():
        found |= addresses(child)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_step_allocates_nothing_large(kind):
    model, batch = large_model(kind), make_batch(LARGE_LENGTHS)
    for _ in range(2):
        logits, _ = forward_and_backward(model, batch)
    dlogits, memory = dlogits_for(logits), addresses(model)

    def peak(stepped):
        tracemalloc.start()
        try:
            stepped.forward(batch)
            stepped.backward(dlogits)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    # The logits are new. The small rest is Python's own, and the kernels' for each thread.
    assert peak(model) < logits.nbytes + SMALL
    assert addresses(model) == memory
    assert peak(large_model(kind)) > 5 * SMALL, "what a first step allocates is not seen"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_batches_grow_and_shrink(kind, backend):
    """Buffers that were used for another size hold nothing that matters."""
    options = {"dropout": 0.2, "backend": backend, "positions": "learned", "dtype": "float32"}
    model = make_model(kind, **options).train()
    for lengths in [(2, 3), (1,), (6,) * 9, (4, 1, 2), (6, 6), (1, 1, 1, 1), (2, 3), (5,) * 12]:
        batch = make_batch(lengths)
        found = forward_and_backward(model, batch)
        expected = forward_and_backward(make_model(kind, **options).train(), batch)
        assert same_bits(found[0], expected[0]) and same_bits(found[1], expected[1])
