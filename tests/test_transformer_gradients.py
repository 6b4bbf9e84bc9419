"""A classifier's loss and gradients in one kernel, and the class that calls it."""

import numpy as np
import pytest
from block_calls import marked
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import assert_equals_twin, assert_same_bits

from fastformer.bench.classifier_cases import classifier_gradients
from fastformer.kernels.activation import GELU, MISH, RELU
from fastformer.kernels.transformer_gradients import (
    transformer_gradients,
    transformer_gradients_reference,
)

KINDS = [
    {"activation": RELU},
    {"activation": GELU, "bias": True, "learned": True, "smoothing": 0.1},
    {"activation": MISH, "learned": True},
]


def check(rng, *sizes, **kind):
    arguments = marked(classifier_gradients(rng, *sizes, **kind))
    assert_equals_twin(transformer_gradients, transformer_gradients_reference, *arguments)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize(
    "sizes",
    [
        ((1, 1, 1, 2), 1, 1, 1, 1, 1),
        ((3, 1, 4, 2, 9), 2, 3, 10, 7, 2),
        ((40, 7, 21, 60, 33), 3, 8, 49, 19, 3),
        ((8,) * 16, 4, 16, 64, 20, 2),
    ],
    ids=str,
)
def test_equals_twin(rng, sizes, shards, kind):
    check(rng, *sizes, shards=shards, **kind)


@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=4, max_size=9),
    heads=st.integers(1, 3),
    width=st.integers(4, 18),
    ffn=st.integers(1, 40),
    blocks=st.integers(1, 3),
    kind=st.sampled_from(KINDS[1:]),  # no kinks, where rounding decides between two gradients
    shards=st.sampled_from((1, 2, 4)),
    seed=st.integers(0, 2**32),
)
def test_equals_twin_for_any_shape(lengths, heads, width, ffn, blocks, kind, shards, seed):
    rng = np.random.default_rng(seed)
    check(rng, lengths, heads, width, ffn, 11, blocks, shards=shards, **kind)


def test_same_bits_for_any_thread_count(rng):
    given_arguments = classifier_gradients(rng, (8, 3, 20) * 5, 4, 16, 64, 20, 2, shards=4)
    assert_same_bits(transformer_gradients, *marked(given_arguments))
