"""A block whose steps threads share: its kernels, and the phases that they are made of."""

import numpy as np
import pytest
from block_calls import KINDS, by_input, forward_arguments, wide_backward_arguments
from gradients import assert_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import assert_equals_twin, assert_same_bits

from fastformer.bench import block_cases
from fastformer.bench.block_cases import block_forward
from fastformer.kernels.wide_block import (
    wide_block_backward,
    wide_block_backward_reference,
    wide_block_forward,
    wide_block_forward_reference,
)


def check(rng, lengths, heads, width, ffn, kind):
    forward = block_forward(rng, lengths, heads, width, ffn, **kind)
    arguments = forward_arguments(forward)
    assert_equals_twin(wide_block_forward, wide_block_forward_reference, *arguments)
    arguments = wide_backward_arguments(rng, forward)
    assert_equals_twin(wide_block_backward, wide_block_backward_reference, *arguments)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(
    ("lengths", "heads", "width", "ffn"),
    [((1,), 1, 1, 1), ((3, 1, 4), 2, 3, 10), ((70, 41, 90), 3, 16, 99)],
)
def test_equals_twin(rng, lengths, heads, width, ffn, kind):
    check(rng, lengths, heads, width, ffn, kind)


@settings(max_examples=20)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    heads=st.integers(1, 4),
    width=st.integers(4, 20),
    ffn=st.integers(1, 70),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32),
)
def test_equals_twin_for_any_shape(lengths, heads, width, ffn, kind, seed):
    check(np.random.default_rng(seed), lengths, heads, width, ffn, kind)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_same_bits_for_any_number_of_threads(rng, kind):
    """Whoever does a task, and also where threads that have nothing left take another's."""
    forward = block_forward(rng, (130, 50, 70), 3, 16, 200, **kind)
    backward = wide_backward_arguments(rng, forward)
    for _ in range(3):
        assert_same_bits(wide_block_forward, *forward_arguments(forward))
        assert_same_bits(wide_block_backward, *backward)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_gradient_of_the_kernels_input(rng, kind):
    """The twins against finite differences."""
    twins = wide_block_forward_reference, wide_block_backward_reference
    assert_gradients(*by_input(rng, kind, *twins, block_cases.wide_block_backward))
