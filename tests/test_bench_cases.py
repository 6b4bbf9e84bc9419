"""The table of kernel cases, and the check that comes before every timing."""

import numpy as np
import pytest

from fastformer.backend import OPS
from fastformer.bench import spec as spec_module
from fastformer.bench.cases import find, specs, table
from fastformer.bench.equivalence import NotEqualError, check
from fastformer.bench.options import parse_shape, resolve_op, resolve_ops
from fastformer.bench.spec import SIZES, Case, Output, kernel_and_twin, realize
from fastformer.errors import InvalidValueError

EVERY_OP = [op for ops in OPS.values() for op in ops]
# One small case of each spec: all of them are compiled in a few seconds, and checked here.
SMALL = {
    "N": 7, "F": 19, "P": 33, "V": 11, "B": 3, "T": 5, "C": 12, "H": 2, "M": 9, "K": 17,
}  # fmt: skip


def small_case(spec) -> Case:
    return Case(spec, tuple(SMALL[letter] for letter in spec.axes))


@pytest.mark.smoke
def test_every_op_has_cases_of_every_size() -> None:
    assert {spec.op for spec in specs()} == set(EVERY_OP)
    cases = table()
    assert len(cases) == len({(case.op, case.spec.variant, case.shape) for case in cases})
    for op in EVERY_OP:
        found = [case for case in cases if case.op == op]
        assert len(found) >= len(SIZES)
        assert any(size % 8 for case in found for size in case.shape), f"{op} has no tails"


@pytest.mark.parametrize("spec", specs(), ids=lambda spec: f"{spec.op}/{spec.variant}")
def test_every_kernel_is_equal_on_a_small_case_and_has_a_cost(spec) -> None:
    case = small_case(spec)
    check(case, kernel_and_twin(case.op)[0], case.op)
    assert case.traffic > 0
    assert case.flops > 0 or case.op in ("gather_rows", "zero_gradient")
    assert find(case.op, spec.variant, list(case.shape)) == case


def test_costs_are_those_of_the_formulas() -> None:
    (case,) = table(("matmul_nt",), [(640, 64, 192)])
    assert case.flops == 2 * 640 * 64 * 192
    assert case.traffic == 4 * (640 * 64 + 192 * 64 + 640 * 192)
    (case,) = table(("matmul_tn",), [(640, 64, 192)])
    # The output is added to, so it is read and written; and so are the sums of the columns.
    assert case.traffic == 4 * (640 * 64 + 640 * 192 + 2 * 64 * 192 + 2 * 192)
    forward, backward = (
        next(case for case in table((op,), [(2, 5, 8, 2)]) if case.spec.variant == "causal")
        for op in ("attention_forward", "attention_backward")
    )
    assert forward.flops == 2 * 2 * (2 * 15) * 8
    assert backward.flops == forward.flops * 5 / 2
    (adam,) = table(("adam_step",), [(1000,)])
    assert adam.traffic == 4 * 1000 * (3 * 2 + 1)
    assert adam.footprint == 4 * 1000 * 4
    (lookup,) = table(("embedding_forward",), [(2, 3, 1000, 8)])
    # The rows that are looked up, not the table.
    assert lookup.footprint <= lookup.traffic == 4 * 3 * 48 + 8 * 2 * 6


def test_inputs_are_the_same_every_time_and_outputs_are_fresh() -> None:
    (case,) = table(("softmax_forward",), [(3, 5)])
    first, second = (realize(case.given(), np.float32) for _ in range(2))
    np.testing.assert_array_equal(first["x"], second["x"])
    assert first["out"] is not second["out"] and np.isnan(first["out"]).all()
    assert first["x"].dtype == np.float32 and not first["x"].ctypes.data % 64
    assert Output((2,)).accumulates is False
    assert Output((2,), 0.0).accumulates and Output((2,), np.ones(2)).accumulates


# ---- a wrong kernel is never timed ----


def _layernorm_twin(*arguments):
    return kernel_and_twin("layernorm_forward")[1](*arguments)


def slightly_wrong(x, weight, bias, epsilon, out, mean, rstd):
    _layernorm_twin(x, weight, bias, epsilon, out, mean, rstd)
    out[2, 3] *= 1 + 64 * np.finfo(np.float32).eps * np.abs(out).max() / np.abs(out[2, 3])


def forgets_an_output(x, weight, bias, epsilon, out, mean, rstd):
    _layernorm_twin(x, weight, bias, epsilon, out, mean, np.empty_like(rstd))


def changes_an_input(x, weight, bias, epsilon, out, mean, rstd):
    _layernorm_twin(x, weight, bias, epsilon, out, mean, rstd)
    x[0, 0] += 1


def takes_other_arguments(x, out):
    out[...] = x


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (slightly_wrong, r"out\[2, 3\] is \S+ and should be .*, 1 of 84 elements are wrong"),
        (forgets_an_output, r"rstd\[0\] is nan and should be .*, 7 of 7 elements are wrong"),
        (changes_an_input, "the input 'x' was changed"),
        (takes_other_arguments, "cannot take the arguments of layernorm_forward 7x12: TypeError"),
    ],
)
def test_a_wrong_kernel_is_found(wrong, complaint) -> None:
    (case,) = table(("layernorm_forward",), [(7, 12)])
    check(case, _layernorm_twin, "the twin itself")
    with pytest.raises(NotEqualError, match=complaint) as found:
        check(case, wrong, "mine")
    assert "nothing was timed" in str(found.value) and "\n" not in str(found.value)


def test_a_wrong_result_that_is_returned_is_found() -> None:
    (case,) = table(("gradient_norm",), [(33,)])
    with pytest.raises(NotEqualError, match="the result is"):
        check(case, lambda gradients: float(np.abs(gradients).sum()), "mine")
    with pytest.raises(NotEqualError, match="must be of shape"):
        check(case, lambda gradients: gradients[:2], "mine")
    with pytest.raises(NotEqualError, match="returns nothing; nothing was timed"):
        check(case, lambda gradients: None, "mine")


# ---- what a person may write ----


@pytest.mark.smoke
def test_names_of_ops_and_files_are_resolved() -> None:
    assert resolve_ops("layernorm") == ("layernorm_forward", "layernorm_backward")
    assert resolve_ops("layernorm_backward") == ("layernorm_backward",)
    assert resolve_ops("cross_entropy") == ("cross_entropy_forward", "cross_entropy_backward")
    assert resolve_ops("matmul")[:3] == ("matmul", "matmul_nt", "matmul_tn")
    assert resolve_op("layernorm") == "layernorm_forward"
    assert resolve_op("adam") == "adam_step"
    assert resolve_op("matmul") == "matmul"
    assert resolve_op("scatter_rows") == "scatter_rows"
    assert parse_shape("512X384") == (512, 384)


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: resolve_ops("layernrom"), "did you mean 'layernorm'"),
        (lambda: resolve_ops("qqq"), "kernel files: activation, adam"),
        (lambda: resolve_op("sequence_rows"), "say which: gather_rows, scatter_rows"),
        (lambda: parse_shape("512x"), "such as 512x384, got '512x'"),
        (lambda: parse_shape("0x4"), "such as 512x384"),
        (lambda: table(("softmax_forward",), [(2, 3, 4)]), "softmax_forward takes NxV"),
        (lambda: table(("attention_forward",), [(2, 3, 7, 2)]), "takes BxTxCxH"),
    ],
)
def test_a_mistake_is_explained(call, complaint) -> None:
    with pytest.raises(InvalidValueError, match=complaint):
        call()


def test_shapes_choose_among_ops_by_their_axes() -> None:
    assert {len(case.spec.axes) for case in table(shapes=[(4, 6)])} == {2}
    assert len(table(("matmul",), [(2, 3, 4), (5, 6, 7)])) == 2 * 3


def test_the_inputs_of_one_case_at_a_time_are_kept() -> None:
    table(("softmax_forward",), [(3, 5)])[0].given()
    assert spec_module._made.cache_info().maxsize == 1
