"""Blocks one after the other: the same as each by itself, planned or not."""

import pytest
from models import BACKENDS, make_batch, make_model, same_bits

from fastformer.layers import block_stack
from fastformer.layers.calls import make

BATCHES = [make_batch(lengths) for lengths in ((3, 1, 4, 2), (5, 6), (3, 1, 4, 2), (4, 4, 1, 1))]


def forward_through(blocks, x, batch, rows=None):
    calls = []
    return make(calls, block_stack.forward_through(blocks, x, batch, rows, calls))


def backward_through(blocks, dout):
    calls = []
    return make(calls, block_stack.backward_through(blocks, dout, calls))


def model_of(backend, **options):
    return make_model("encoder", backend=backend, num_layers=3, **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("some_rows", [False, True], ids=["all rows", "last rows"])
@pytest.mark.parametrize("options", [{}, {"norm": "pre"}, {"positions": "alibi"}], ids=str)
def test_a_stack_is_its_blocks_one_by_one(rng, backend, some_rows, options):
    models = [model_of(backend, **options) for _ in range(2)]
    together, alone = (model.blocks for model in models)
    width = together[0].embed_dim
    for batch in BATCHES:
        # A plan is for the very arrays that it was made for.
        x = rng.standard_normal((batch.num_tokens, width)).astype(together[0].dtype)
        rows = batch._last_rows if some_rows else None
        for _ in range(2):
            found = forward_through(together, x, batch, rows)
            expected = x
            for block in alone:
                expected = block.forward(expected, batch, rows if block is alone[-1] else None)
            assert same_bits(found, expected)
            dout = rng.standard_normal(found.shape).astype(found.dtype)
            dx = backward_through(together, dout)
            gradient = dout
            for block in reversed(alone):
                gradient = block.backward(gradient)
            assert same_bits(dx, gradient)
            gradients, others = (model.grad_dict() for model in models)
            for name, value in gradients.items():
                assert same_bits(value, others[name]), name


def test_what_has_a_plan_and_what_has_none_may_take_turns(rng, monkeypatch):
    """Calls that wait are made before a block that is no part of them."""
    blocks, batch = model_of("numba").blocks, BATCHES[0]
    x = rng.standard_normal((batch.num_tokens, blocks[0].embed_dim)).astype(blocks[0].dtype)
    expected = forward_through(blocks, x, batch).copy()
    dout = rng.standard_normal(x.shape).astype(x.dtype)
    expected_dx = backward_through(blocks, dout).copy()
    for unplanned in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(blocks[unplanned], "planned_forward", lambda *arguments: None)
            assert same_bits(forward_through(blocks, x, batch), expected)
        with monkeypatch.context() as patch:
            patch.setattr(blocks[unplanned], "planned_backward", lambda dout: None)
            patch.setattr(blocks[unplanned], "backward", unplanned_backward(blocks[unplanned]))
            assert same_bits(backward_through(blocks, dout), expected_dx)


def unplanned_backward(block):
    def backward(dout):
        calls, dx = block.plan.backward(dout)
        for function, arguments in calls:
            function(*arguments)
        return dx

    return backward


def test_kernels_follow_each_other_without_any_python_that_prepares(rng, monkeypatch):
    """All blocks are prepared before the first one is computed."""
    blocks, batch = model_of("numba").blocks, BATCHES[0]
    x = rng.standard_normal((batch.num_tokens, blocks[0].embed_dim)).astype(blocks[0].dtype)
    forward_through(blocks, x, batch)
    order = []

    def told(what, function):
        def call(*arguments):
            order.append(what)
            return function(*arguments)

        return call

    for block in blocks:
        monkeypatch.setattr(block, "planned_forward", told("prepared", block.planned_forward))
    ops = blocks[0].ops
    op = f"{blocks[0].op}_forward"
    monkeypatch.setattr(ops, op, told("computed", getattr(ops, op)))
    forward_through(blocks, x, batch)
    assert order == ["prepared"] * 3 + ["computed"] * 3
