"""Cases of the ops that multiply matrices: most are bound by arithmetic."""

import numpy as np

from fastformer.bench.spec import Arguments, Output, Shape, Sizes, Spec, normal
from fastformer.kernels.activation import GELU, NO_ACTIVATION
from fastformer.kernels.attention import attention_forward_reference
from fastformer.layers.relative_positions import alibi_slopes

Random = np.random.Generator
NOTHING = np.zeros((0, 0))
NO_VECTOR = np.zeros(0)


def _linear_layers(s: Sizes) -> list[Shape]:
    """Return (rows, inputs, outputs) of a model's linear layers."""
    layers: list[Shape] = [(s.N, s.C, 3 * s.C), (s.N, s.C, s.F), (s.N, s.F, s.C)]
    # GPT-2's output layer alone would take longer than all others.
    return layers if s.V > 10_000 else [*layers, (s.N, s.C, s.V)]


def _hidden_layer(s: Sizes) -> list[Shape]:
    return [(s.N, s.C, s.F)]


def _product_flops(M: int, K: int, N: int) -> int:
    return 2 * M * K * N


def _matmul(random: Random, M: int, K: int, N: int) -> Arguments:
    """Multiply x (M, K) by weights (K, N)."""
    return {
        "a": normal(random, M, K),
        "b": normal(random, 1, K, N),
        "bias": NO_VECTOR,
        "addend": NOTHING,
        "activation": NO_ACTIVATION,
        "slope": NOTHING,
        "out": Output((M, N)),
    }


def _matmul_gelu(random: Random, M: int, K: int, N: int) -> Arguments:
    return _matmul(random, M, K, N) | {
        "bias": normal(random, N),
        "activation": GELU,
        "slope": Output((M, N)),
    }


def _matmul_residual(random: Random, M: int, K: int, N: int) -> Arguments:
    return _matmul(random, M, K, N) | {"bias": normal(random, N), "addend": normal(random, M, N)}


def _matmul_nt(random: Random, M: int, K: int, N: int) -> Arguments:
    """Multiply dy (M, K) by the transpose of weights (N, K)."""
    return {
        "a": normal(random, M, K),
        "b": normal(random, 1, N, K),
        "saved": NOTHING,
        "addend": NOTHING,
        "activation": NO_ACTIVATION,
        "out": Output((M, N)),
    }


def _matmul_tn(random: Random, M: int, K: int, N: int) -> Arguments:
    """Multiply the transpose of x (M, K) by dy (M, N)."""
    return {
        "a": normal(random, M, K),
        "b": normal(random, M, N),
        "column_sums": Output((N,), 0.0),
        "out": Output((1, K, N), 0.0),
    }


def _matmul_backward(random: Random, M: int, K: int, N: int) -> Arguments:
    """Multiply dy (M, N) by weights (K, N), transposed, and x (M, K), transposed, by dy."""
    return {
        "a": normal(random, M, K),
        "b": normal(random, 1, K, N),
        "dout": normal(random, M, N),
        "saved": NOTHING,
        "addend": NOTHING,
        "activation": NO_ACTIVATION,
        "da": Output((M, K)),
        "db": Output((1, K, N), 0.0),
        "column_sums": Output((N,), 0.0),
    }


def pairs(B: int, T: int, causal: bool) -> int:
    """Return how many pairs of query and key see each other."""
    return B * (T * (T + 1) // 2 if causal else T * T)


def _attention_inputs(random: Random, variant: str, B: int, T: int, C: int, H: int) -> Arguments:
    offsets = np.arange(B + 1, dtype=np.int64) * T
    return {
        **{name: normal(random, B * T, C) for name in ("q", "k", "v")},
        "query_offsets": offsets,
        "key_offsets": offsets,
        "positions": np.tile(np.arange(T), B),
        "slopes": alibi_slopes(H) if variant == "alibi" else NO_VECTOR,
        "causal": variant != "full",
        "scale": (C // H) ** -0.5,
    }


def _attention(random: Random, variant: str, B: int, T: int, C: int, H: int) -> Arguments:
    return _attention_inputs(random, variant, B, T, C, H) | {
        "out": Output((B * T, C)),
        "row_max": Output((B * T, H)),
        "row_sum": Output((B * T, H)),
    }


def _attended(random: Random, variant: str, B: int, T: int, C: int, H: int) -> Arguments:
    """Return the inputs, and what forward made of them."""
    inputs = _attention_inputs(random, variant, B, T, C, H)
    made = {"out": np.empty((B * T, C))}
    made |= {name: np.empty((B * T, H)) for name in ("row_max", "row_sum")}
    attention_forward_reference(**inputs, **made)
    return inputs | made


def _attention_gradient(random: Random, variant: str, B: int, T: int, C: int, H: int) -> Arguments:
    made = {"dout": normal(random, B * T, C)} | _attended(random, variant, B, T, C, H)
    order = ("dout", "q", "k", "v", "out", "row_max", "row_sum", "query_offsets", "key_offsets",
             "positions", "slopes", "causal", "scale")  # fmt: skip
    gradients = {name: Output((B * T, C)) for name in ("dq", "dk", "dv")}
    return {name: made[name] for name in order} | gradients


def _attention_weights(random: Random, variant: str, B: int, T: int, C: int, H: int) -> Arguments:
    made = _attention_inputs(random, variant, B, T, C, H)
    del made["v"]
    return made | {"weights": Output((B, H, T, T))}


def _attention_specs(variant: str) -> list[Spec]:
    causal = variant != "full"

    def shapes(s: Sizes) -> list[Shape]:
        # The encoder's task sees all, language models see the past.
        return [(s.B, s.T, s.C, s.H)] if causal == (s.name != "digits") else []

    def spec(op: str, make: object, products: int) -> Spec:
        # Two operations for each element of a head in each product, for each pair.
        return Spec(
            op, "BTCH", shapes,
            lambda random, *shape: make(random, variant, *shape),  # type: ignore[operator]
            lambda B, T, C, H: 2 * products * pairs(B, T, causal) * C,
            variant=variant,
        )  # fmt: skip

    return [
        spec("attention_forward", _attention, 2),
        # Scores once more, and a product for each of dP, dQ, dK and dV.
        spec("attention_backward", _attention_gradient, 5),
        spec("attention_weights", _attention_weights, 1),
    ]


# With operands that are rounded to bfloat16: the same cases.
_ROUNDED = (
    Spec("matmul_bfloat16", "MKN", _linear_layers, _matmul, _product_flops),
    Spec(
        "matmul_bfloat16", "MKN", _hidden_layer, _matmul_gelu, _product_flops, variant="bias+gelu"
    ),
    Spec(
        "matmul_nt_bfloat16", "MKN", lambda s: [(m, n, k) for m, k, n in _linear_layers(s)],
        _matmul_nt, _product_flops,
    ),
    Spec("matmul_tn_bfloat16", "MKN", _linear_layers, _matmul_tn, _product_flops),
    Spec(
        "matmul_backward_bfloat16", "MKN", _linear_layers, _matmul_backward,
        lambda M, K, N: 2 * _product_flops(M, K, N),
    ),
)  # fmt: skip

PRODUCTS = (
    *_attention_specs("full"),
    *_attention_specs("causal"),
    *_attention_specs("alibi"),
    Spec("matmul", "MKN", _linear_layers, _matmul, _product_flops),
    Spec("matmul", "MKN", _hidden_layer, _matmul_gelu, _product_flops, variant="bias+gelu"),
    Spec("matmul", "MKN", _hidden_layer, _matmul_residual, _product_flops, variant="bias+residual"),
    Spec(
        "matmul_nt", "MKN", lambda s: [(m, n, k) for m, k, n in _linear_layers(s)], _matmul_nt,
        _product_flops,
    ),
    Spec("matmul_tn", "MKN", _linear_layers, _matmul_tn, _product_flops),
    *_ROUNDED,
    Spec(
        "matmul_backward", "MKN", _linear_layers, _matmul_backward,
        lambda M, K, N: 2 * _product_flops(M, K, N),
    ),
)  # fmt: skip
