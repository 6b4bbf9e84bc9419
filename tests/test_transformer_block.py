"""The block: its kernels, both norms, its gradients, and the saving for one row per sequence."""

import copy

import numpy as np
import pytest
from block_calls import (
    KINDS,
    backward_arguments,
    by_input,
    forward_arguments,
    marked,
    weights_arguments,
)
from gradients import assert_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from models import (
    BACKENDS,
    assert_equal_gradients,
    assert_gradients_on_both_backends,
    dlogits_for,
    forward_and_backward,
    make_batch,
    make_config,
    make_model,
    same_bits,
    shaken,
)
from twins import DTYPES, assert_equals_twin, assert_same_bits, called, run

import fastformer as ff
from fastformer.bench.block_cases import block_backward, block_forward
from fastformer.bench.cases import Output
from fastformer.errors import FastformerError, InvalidTypeError
from fastformer.kernels.matmul import matmul_tn
from fastformer.kernels.transformer_block import (
    MOST_SHARDS,
    SHARD_TOKENS,
    shard_count,
    transformer_block_backward,
    transformer_block_backward_reference,
    transformer_block_forward,
    transformer_block_forward_reference,
    transformer_block_weights,
    transformer_block_weights_reference,
)
from fastformer.layers import block_plan, transformer_block
from fastformer.layers.block_plan import FEWEST_TOKENS_OF_HALVES, BlockPlans
from fastformer.layers.dropout import DropoutCounter

shard_count = called(shard_count)

WIDTH = 6
BATCH = make_batch((3, 1, 4))
ROWS = {"first": BATCH.offsets[:-1].copy(), "last": BATCH.offsets[1:] - 1}
SIZES = {"embed_dim": WIDTH, "num_heads": 2, "ffn_dim": 10}
ROTARY, ALIBI = {"positions": "rotary", "num_heads": 3}, {"positions": "alibi"}
NORMS = ("post", "pre")
OPS = ("transformer_block", "wide_block", None)
# What the ops do not know goes layer by layer, whichever was chosen.
UNUSUAL = [
    {"dropout": 0.3, "activation": "gelu"},
    {"norm_type": "rmsnorm", "activation": "swiglu"},
    ROTARY,
    ALIBI,
]


def make_block(backend="numba", dtype="float64", causal=False, **options):
    counter = DropoutCounter(seed=3)
    counter.training, counter.forwards = True, 2
    config = make_config("encoder", **SIZES | options)
    return shaken(
        ff.TransformerBlock(
            config, causal=causal, counter=counter, seed=1, backend=backend, dtype=dtype
        )
    )


@pytest.fixture(params=OPS)
def op(request, monkeypatch):
    """Compute usual blocks by one of the ops, or layer by layer."""
    choose(monkeypatch, request.param)
    return request.param


def choose(monkeypatch, op):
    def op_for(self, batch=None):
        return None if self._drops() or not self.usual else op

    monkeypatch.setattr(ff.TransformerBlock, "op_for", op_for)


def check(rng, lengths, heads, width, ffn, kind):
    forward = block_forward(rng, lengths, heads, width, ffn, **kind)
    arguments = forward_arguments(forward)
    assert_equals_twin(transformer_block_forward, transformer_block_forward_reference, *arguments)
    arguments = backward_arguments(rng, forward)
    assert_equals_twin(transformer_block_backward, transformer_block_backward_reference, *arguments)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(
    ("lengths", "heads", "width", "ffn"),
    [((1,), 1, 1, 1), ((3, 1, 4), 2, 3, 10), ((40, 50, 41, 60, 33), 3, 8, 49)],
)
def test_equals_twin(rng, lengths, heads, width, ffn, kind):
    check(rng, lengths, heads, width, ffn, kind)


@settings(max_examples=20)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    heads=st.integers(1, 4),
    width=st.integers(4, 20),
    ffn=st.integers(1, 70),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32),
)
def test_equals_twin_for_any_shape(lengths, heads, width, ffn, kind, seed):
    check(np.random.default_rng(seed), lengths, heads, width, ffn, kind)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_nan_that_an_activation_saved_stays_visible(rng, kind):
    """Also where ReLU's derivative is 0 or 1."""
    arguments = block_backward(rng, block_forward(rng, (3, 1, 4), 2, 3, 10, **kind))
    arguments["saved"][1, 2] = np.nan
    for function in (transformer_block_backward, transformer_block_backward_reference):
        found = run(function, *marked(arguments), dtype=np.float64)
        outputs = [name for name, value in arguments.items() if isinstance(value, Output)]
        dhidden = found[outputs.index("dhidden")]
        np.testing.assert_array_equal(np.argwhere(np.isnan(dhidden)), [[1, 2]])
        assert np.isnan(found[outputs.index("dx")]).any()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_same_bits_for_any_number_of_threads(rng, kind):
    forward = block_forward(rng, rng.integers(1, 60, 12), 2, 8, 33, **kind)
    assert_same_bits(transformer_block_forward, *forward_arguments(forward))
    assert_same_bits(transformer_block_backward, *backward_arguments(rng, forward))


@pytest.mark.parametrize("some_rows", [False, True], ids=["all rows", "some rows"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("halves", [False, True], ids=["whole", "halves"])
@pytest.mark.parametrize(("rows", "columns", "ffn"), [(1, 1, 1), (9, 6, 10), (300, 40, 129)])
def test_weights_equal_twin(rng, rows, columns, ffn, halves, bias, some_rows):
    kind = {"some_rows": some_rows, "bias": bias, "halves": halves}
    arguments = weights_arguments(rng, rows, columns, ffn, **kind)
    assert_equals_twin(transformer_block_weights, transformer_block_weights_reference, *arguments)


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_have_the_bits_of_each_layer_alone_for_any_number_of_threads(rng, dtype):
    arguments = weights_arguments(rng, 800, 70, 190, some_rows=False, bias=True, halves=False)
    assert_same_bits(transformer_block_weights, *arguments)
    *found, _ = run(transformer_block_weights, *arguments, dtype=dtype)
    alone = [run(matmul_tn, *arguments[i : i + 4], dtype=dtype) for i in range(0, 16, 4)]
    expected = [result for results in alone for result in results]
    assert len(found) == len(expected) == 8
    assert all(map(same_bits, found, expected))


@pytest.mark.parametrize("rows", [1, 37, 800])
def test_halves_of_weights_have_the_same_bits_for_any_number_of_threads(rng, rows):
    arguments = weights_arguments(rng, rows, 70, 190, some_rows=False, bias=True, halves=True)
    assert_same_bits(transformer_block_weights, *arguments)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_gradient_of_the_kernels_input(rng, kind):
    """The twins against finite differences."""
    twins = transformer_block_forward_reference, transformer_block_backward_reference
    assert_gradients(*by_input(rng, kind, *twins, block_backward))


@pytest.mark.parametrize(
    ("tokens", "sequences", "shards"),
    [(1, 1, 1), (2 * SHARD_TOKENS - 1, 9, 1), (2 * SHARD_TOKENS, 9, 2), (10**6, 3, 2)],
)
def test_number_of_shards(tokens, sequences, shards):
    assert shard_count(tokens, sequences) == shards
    assert shard_count(10**9, 10**6) == MOST_SHARDS


@pytest.mark.parametrize("op", OPS[:2])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("rows", [None, "first", "last"])
def test_one_region_has_the_bits_of_the_layers(rng, monkeypatch, op, backend, dtype, norm, rows):
    """All but norms' gradients where threads take sequences, which are sums of other parts."""
    batch = make_batch((30, 31, 29, 30, 2))
    chosen = None if rows is None else getattr(batch, f"_{rows}_rows")
    x = rng.standard_normal((batch.num_tokens, WIDTH)).astype(dtype)
    dout = rng.standard_normal((5 if rows else len(x), WIDTH)).astype(dtype)
    found = []
    for used in (op, None):
        choose(monkeypatch, used)
        block = make_block(backend, np.dtype(dtype).name, norm=norm, activation="gelu")
        out = block.forward(x, batch, chosen).copy()
        assert block.op is used
        found.append((out, block.backward(dout).copy(), block.grad_dict()))
    (out, dx, gradients), (expected_out, expected_dx, expected_gradients) = found
    assert same_bits(out, expected_out)
    assert same_bits(dx, expected_dx)
    for name, gradient in gradients.items():
        if "norm" in name and op == "transformer_block":
            tolerance = 100 * np.finfo(dtype).eps
            np.testing.assert_allclose(gradient, expected_gradients[name], tolerance, tolerance)
        else:
            assert same_bits(gradient, expected_gradients[name]), name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [None, "last"])
def test_weights_gradients_of_many_tokens_are_made_of_halves(rng, monkeypatch, backend, rows):
    batch = make_batch((9, 100, 31, 7, 53, FEWEST_TOKENS_OF_HALVES - 200))
    chosen = None if rows is None else batch._last_rows
    x = rng.standard_normal((batch.num_tokens, WIDTH)).astype(np.float32)
    dout = rng.standard_normal((6 if rows else len(x), WIDTH)).astype(np.float32)
    found = []
    for fewest in (FEWEST_TOKENS_OF_HALVES, FEWEST_TOKENS_OF_HALVES + 1):
        monkeypatch.setattr(block_plan, "FEWEST_TOKENS_OF_HALVES", fewest)
        block = make_block(backend, "float32")
        block.forward(x, batch, chosen)
        block.backward(dout)
        found.append(block.grad_dict())
    halves, whole = found
    for name, gradient in halves.items():
        np.testing.assert_allclose(gradient, whole[name], 1e-4, 1e-4)
    changed = [name for name in halves if not same_bits(halves[name], whole[name])]
    assert changed
    assert not [name for name in changed if "norm" in name]


@pytest.mark.parametrize("op", OPS[:2], indirect=True)
def test_a_plan_is_used_for_what_it_was_made_for(rng, op):
    """Other sizes, other batches of a size, arrays that moved and copies: all as a new block."""
    block = make_block()

    def assert_as_new(batch, x):
        dout = rng.standard_normal(x.shape)
        twin = make_block()
        twin.zero_grad()
        block.zero_grad()
        assert same_bits(block.forward(x, batch), twin.forward(x, batch))
        assert same_bits(block.backward(dout), twin.backward(dout))
        for name, gradient in twin.grad_dict().items():
            assert same_bits(block.grad_dict()[name], gradient), name

    x = rng.standard_normal((8, WIDTH))
    assert_as_new(BATCH, x)
    plan = block.plan
    assert_as_new(BATCH, x)
    assert block.plan is plan, "a plan that fits is not used again"
    with pytest.raises(InvalidTypeError, match="batch must be a PackedBatch, got NoneType"):
        block.forward(x, None)
    with pytest.raises(InvalidTypeError, match="rows must be"):
        block.forward(x, BATCH, [0, 3, 4])
    assert_as_new(make_batch((1, 1, 6)), x)
    assert_as_new(make_batch((4, 4)), x)
    assert_as_new(make_batch((50, 70)), rng.standard_normal((120, WIDTH)))
    assert_as_new(BATCH, x)
    block = copy.deepcopy(block)
    block.parameters()
    assert_as_new(BATCH, x)
    loose = make_block()
    loose.forward(x, BATCH)
    loose.parameters().values[...] *= 2
    block.parameters().values[...] = loose.parameters().values
    assert same_bits(loose.forward(x, BATCH), block.forward(x, BATCH))


def test_plans_are_kept_for_the_sizes_that_a_training_run_has(rng):
    """Of its parts and of its validation; those whose buffers have been replaced are let go."""
    block, plans = make_block(), []
    sizes = [(3, 1, 4), (5, 6), (2, 9, 4, 8)]
    batches = [
        (make_batch(lengths), rng.standard_normal((sum(lengths), WIDTH))) for lengths in sizes
    ]
    for turn in range(3):
        for batch, x in reversed(batches):
            block.forward(x, batch)
            block.backward(x)
            plans.append(block.plan)
            if turn:
                assert block.plan is plans[-4]
    lengths = (20, 30)
    block.forward(rng.standard_normal((50, WIDTH)), make_batch(lengths))
    assert block._plans._plans == [block.plan]
    for batch, x in batches * 3:
        block.forward(x, batch)
    for length in range(1, 9):
        block.forward(rng.standard_normal((length, WIDTH)), make_batch((length,)))
    assert len(block._plans._plans) == BlockPlans.MOST


@pytest.mark.parametrize("op", OPS[:2], indirect=True)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_what_a_forward_leaves_is_of_its_batch_though_others_came_between(rng, op, dropout):
    """The weights of its attention, and what a gradient in another array needs."""
    block, twin = make_block(dropout=dropout), make_block(dropout=dropout)
    batches = [make_batch((3, 1, 4)), make_batch((2, 2)), make_batch((9, 4, 2, 1))]
    inputs = [rng.standard_normal((batch.num_tokens, WIDTH)) for batch in batches]
    counter = block.attention.dropout.counter
    for turn in (0, 1, 2, 1, 0, 0, 2):
        for training in (False, True):
            counter.training = training
            block.forward(inputs[turn], batches[turn])
        counter.training = False
        # Which only the layers know, where something is dropped.
        block.forward(inputs[2 - turn], batches[2 - turn])
        counter.training = True
        block.forward(inputs[1], batches[1])
        counter.training = twin.attention.dropout.counter.training = False
        found = block.forward(inputs[turn], batches[turn])
        twin = make_block(dropout=dropout)
        twin.attention.dropout.counter.training = False
        assert same_bits(found, twin.forward(inputs[turn], batches[turn]))
        assert same_bits(block.attention.weights(), twin.attention.weights())
        dout = rng.standard_normal(found.shape)
        block.zero_grad()
        twin.zero_grad()
        assert same_bits(block.backward(dout.copy()), twin.backward(dout))
        for name, gradient in twin.grad_dict().items():
            assert same_bits(block.grad_dict()[name], gradient), name


@pytest.mark.parametrize(
    "options", [{"dropout": 0.5}, {"norm_type": "rmsnorm"}, {"activation": "swiglu"}, ROTARY, ALIBI]
)
def test_what_the_kernels_do_not_know_is_done_layer_by_layer(rng, options):
    block = make_block(**options)
    block.forward(rng.standard_normal((8, WIDTH)), BATCH)
    assert block.op is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("FEWEST_SEQUENCES", 4), ("MOST_OF_A_SEQUENCE", 15), ("MOST_PARAMETERS", 263)],
)
def test_threads_share_the_steps_of_wide_blocks_and_of_few_or_long_sequences(
    rng, monkeypatch, name, value
):
    """Of three sequences of 16 elements, with 264 parameters in products."""
    monkeypatch.setattr(transformer_block, "FEWEST_SEQUENCES", 3)
    x = rng.standard_normal((8, WIDTH))
    block = make_block()
    block.forward(x, BATCH)
    assert block.op == "transformer_block"
    monkeypatch.setattr(transformer_block, name, value)
    block = make_block()
    block.forward(x, BATCH)
    assert block.op == "wide_block"


def test_products_of_bfloat16_are_made_layer_by_layer(rng):
    config = make_config("encoder", **SIZES)
    block = ff.TransformerBlock(config, precision="bfloat16")
    block.forward(rng.standard_normal((8, WIDTH)).astype(np.float32), BATCH)
    assert block.op is None


@pytest.mark.parametrize("dout", [np.zeros((8, WIDTH + 1)), np.zeros((7, WIDTH)), None])
def test_a_gradient_of_another_shape_never_reaches_the_kernels(rng, op, dout):
    block = make_block()
    block.forward(rng.standard_normal((8, WIDTH)), BATCH)
    with pytest.raises(FastformerError, match="dout must be"):
        block.backward(dout)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("op", "norm_type"), [*((op, "layernorm") for op in OPS), (None, "rmsnorm")], indirect=["op"]
)
def test_formula(rng, op, backend, norm, norm_type):
    """As its docstring has it, from layers of its own with the same weights."""
    block = make_block(backend, norm=norm, norm_type=norm_type)
    norm_class = ff.RMSNorm if norm_type == "rmsnorm" else ff.LayerNorm
    weights = block.state_dict()
    options = {"backend": backend, "dtype": "float64"}
    layers = {
        "attention": ff.MultiHeadAttention(WIDTH, 2, **options),
        "norm1": norm_class(WIDTH, **options),
        "feed_forward": ff.FeedForward(WIDTH, 10, **options),
        "norm2": norm_class(WIDTH, **options),
    }
    for name, layer in layers.items():
        layer.load_state_dict(
            {k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(f"{name}.")}
        )

    def apply(name, *arguments):
        return layers[name].forward(*arguments).copy()

    x = rng.standard_normal((8, WIDTH))
    if norm == "post":
        b = apply("norm1", x + apply("attention", x, BATCH))
        expected = apply("norm2", b + apply("feed_forward", b))
    else:
        b = x + apply("attention", apply("norm1", x), BATCH)
        expected = b + apply("feed_forward", apply("norm2", b))
    np.testing.assert_allclose(block.forward(x, BATCH), expected, 1e-10, 1e-12)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("rows", [None, "first", "last"])
@pytest.mark.parametrize(
    ("op", "options"),
    [*((op, {}) for op in OPS), *((None, options) for options in UNUSUAL)],
    indirect=["op"],
)
def test_gradients(rng, op, norm, rows, options):
    """By x and by each element of each parameter, with all rows and with chosen ones."""
    chosen = None if rows is None else ROWS[rows]
    assert_gradients_on_both_backends(
        lambda backend: make_block(backend, norm=norm, **options),
        lambda block, x: block.forward(x, BATCH, chosen),
        lambda block, dout: (block.backward(dout),),
        rng.standard_normal((8, WIDTH)),
    )


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_of_a_causal_block(rng, op, norm):
    assert_gradients_on_both_backends(
        lambda backend: make_block(backend, causal=True, norm=norm, attention_bias=True),
        lambda block, x: block.forward(x, BATCH),
        lambda block, dout: (block.backward(dout),),
        rng.standard_normal((8, WIDTH)),
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(
    ("op", "options"), [*((op, {}) for op in OPS), (None, ROTARY), (None, ALIBI)], indirect=["op"]
)
def test_chosen_rows_are_those_of_all(rng, op, backend, norm, rows, options):
    """The saving changes no result: output, gradient of x, gradients of parameters."""
    block = make_block(backend, norm=norm, attention_bias=True, **options)
    x, chosen = rng.standard_normal((8, WIDTH)), ROWS[rows]
    dout = rng.standard_normal((3, WIDTH))
    expected = block.forward(x, BATCH)[chosen].copy()
    everywhere = np.zeros((8, WIDTH))
    everywhere[chosen] = dout
    expected_dx = block.backward(everywhere).copy()
    expected_gradients = block.grad_dict()
    block.zero_grad()
    np.testing.assert_allclose(block.forward(x, BATCH, chosen), expected, 1e-11, 1e-13)
    np.testing.assert_allclose(block.backward(dout), expected_dx, 1e-10, 1e-12)
    assert_equal_gradients(block.grad_dict(), expected_gradients, 1e-10, 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("pooling", ROWS)
@pytest.mark.parametrize("options", [{}, {"positions": "rotary"}, ALIBI])
def test_the_last_block_of_a_model_saves_rows_and_changes_nothing(backend, norm, pooling, options):
    """The model's logits and gradients against all rows of all blocks, of which some are read."""
    model = make_model("encoder", backend=backend, norm=norm, pooling=pooling, **options)
    logits, gradients = forward_and_backward(model, BATCH)
    assert model.blocks[-1].feed_forward.expand.x.shape[0] == 3, "nothing was saved"

    chosen = ROWS[pooling]
    x = model.embedding.forward(BATCH, model.positions)
    norms = [model.final_norm] if norm == "pre" else []
    for block in model.blocks:
        x = block.forward(x, BATCH)
    for layer in norms:
        x = layer.forward(x)
    np.testing.assert_allclose(model.output.forward(x[chosen]), logits, 1e-11, 1e-12)
    model.zero_grad()
    dx = np.zeros(x.shape)
    dx[chosen] = model.output.backward(dlogits_for(logits))
    for layer in (*norms, *reversed(model.blocks)):
        dx = layer.backward(dx)
    model.embedding.backward(dx)
    assert_equal_gradients(model.grad_dict(), gradients, 1e-10, 1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_a_causal_block_does_not_see_what_comes_later(rng, norm):
    block = make_block(causal=True, norm=norm)
    x = rng.standard_normal((8, WIDTH))
    out = block.forward(x, BATCH).copy()
    for row in range(8):
        changed = x.copy()
        changed[row] = rng.standard_normal(WIDTH)
        same = [
            same_bits(before, after)
            for before, after in zip(out, block.forward(changed, BATCH), strict=True)
        ]
        sequence = np.searchsorted(BATCH.offsets, row, side="right")
        later = range(row, BATCH.offsets[sequence])
        assert [i for i in range(8) if not same[i]] == list(later)


def test_names():
    """Every part of the block has its own names, and bias comes with attention_bias alone."""
    plain = set(make_block().state_dict())
    biased = set(make_block(attention_bias=True).state_dict())
    parts = ("query", "key", "value", "output")
    assert plain == {
        *(f"attention.{part}.weight" for part in parts),
        *(f"{norm}.{name}" for norm in ("norm1", "norm2") for name in ("weight", "bias")),
        *(
            f"feed_forward.{part}.{name}"
            for part in ("expand", "contract")
            for name in ("weight", "bias")
        ),
    }
    assert biased - plain == {f"attention.{part}.bias" for part in parts}


@pytest.mark.parametrize("config", [None, {"embed_dim": 8}, 8])
def test_a_config_of_another_class_is_refused(config):
    with pytest.raises(InvalidTypeError, match=r"config must be"):
        ff.TransformerBlock(config)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("rows", [np.array([0, 3, 8]), np.array([0, 3]), np.array([-9, 3, 4])])
def test_rows_outside_never_reach_a_kernel(norm, rows):
    with pytest.raises(FastformerError, match="rows must be"):
        make_block("reference", norm=norm).forward(np.zeros((8, WIDTH)), BATCH, rows)
