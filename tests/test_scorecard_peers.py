"""The rows beside PyTorch: their kept results, a few cases, and that faults are noticed."""

import numpy as np
import parity
import pytest

import tests.scorecard  # noqa: F401  it makes the helpers of the tests importable
from fastformer.backend import OPS, get_backend
from tests.scorecard import peers, peers_table
from tests.scorecard.accuracy import (
    ROUNDING,
    Case,
    cases,
    errors,
    ratios,
    with_ops,
)
from tests.scorecard.accuracy_inputs import REGIMES
from tests.scorecard.accuracy_positions import FAMILIES


@pytest.fixture(scope="module")
def table() -> dict:
    return peers_table.read()


def test_the_kept_table_has_each_case_and_each_training(table: dict) -> None:
    assert len(table["errors"]) == peers_table.NIGHTLY_ROUNDS * len(FAMILIES)
    assert table["digests"].keys() == {family.name for family in FAMILIES}
    assert table["training"].keys() == parity.TRAINED.keys()
    assert all(len(kept["losses"]) == parity.STEPS for kept in table["training"].values())
    outputs = sum(len(row) // 2 for row in table["errors"])
    assert outputs >= 5_000
    fast = sum(len(row) // 2 for row in table["errors"][: peers.FAST_ROUNDS * len(FAMILIES)])
    assert fast >= 500


def test_every_family_is_seen_in_every_regime() -> None:
    seen = {(case.family.name, case.regime) for case in cases(len(REGIMES))}
    assert len(seen) == len(FAMILIES) * len(REGIMES)


def test_every_op_of_the_backend_is_measured() -> None:
    called: set[str] = set()

    class Spy:
        def __getattr__(self, name: str):
            called.add(name)
            return getattr(get_backend("reference"), name)

    for case in cases(1):
        case.family.compute(Spy(), case.inputs(0))
    # A yes or no, and a 0, have no error; a moving average is one product and two sums.
    exact = {"may_step", "zero_gradient", "average_step"}
    # What is rounded on purpose is held to the twin that rounds, and has no place beside float32.
    rounded = set(OPS["matmul_bfloat16"])
    assert called == {op for ops in OPS.values() for op in ops} - exact - rounded


def test_a_few_cases_and_a_fault(table: dict) -> None:
    small = [case for case in cases(3) if np.prod(case.shape) < 20_000]
    assert len(small) > 5
    for case in small:
        plain, worst = peers.compare(case, table)
        assert all(np.isfinite(pair).all() for pair in plain.values())
        assert all(0 < ratio < 10 for pair in worst.values() for ratio in pair), str(case)
    assert peers.notices("a softmax without shift", table)


@pytest.mark.parametrize("fault", [None, "weights in half precision", "a transposed weight"])
def test_training(table: dict, fault: str | None) -> None:
    faults = (fault,) if fault else ()
    if fault is None:
        found = peers.measure_training(("decoder",), table, faults)
        assert found.held >= 1 and not any("differs" in text for text in found.failures)
    else:
        assert peers.training_notices(fault, table, "encoder")


def test_other_inputs_than_those_of_the_table_are_refused(table: dict) -> None:
    case = next(iter(cases(1)))
    other = table | {"digests": table["digests"] | {case.family.name: 1}}
    with pytest.raises(ValueError, match="other inputs than when torch_table.json was made; run"):
        peers_table.kept_errors(other, case, ["dbias", "dweight", "dx", "out"])


def test_errors_are_those_of_the_definition() -> None:
    case = Case(next(family for family in FAMILIES if family.name == "relu"), "normal", 7)

    def off_by_a_thousandth(inputs):
        found = with_ops(case)(inputs)
        return found | {"out": found["out"] * np.float32(1.001), "dx": found["dx"] * np.nan}

    right, wrong, sensitivity = errors(case, with_ops(case), off_by_a_thousandth)
    assert right["out"] == (0, 0)
    assert wrong["out"] == pytest.approx((1e-3, 1e-3), rel=1e-3)
    assert wrong["dx"] == (np.inf, np.inf)
    assert sensitivity["out"][0] == pytest.approx(ROUNDING, rel=1e-6)
    assert ratios(right, right)["out"] == (1, 1)
    assert ratios(wrong, right)["out"][0] == pytest.approx(1e-3 / ROUNDING, rel=1e-2)


@pytest.mark.needs("torch")
def test_the_truth_is_held_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in cases(1) if case.family.name == "gelu")
    assert peers_table.torch_errors(case).keys() == {"out", "dx"}
    theirs = peers_table.torch_computes(case)

    def other(_case: Case):
        return lambda inputs: {k: v * (1 + 1e-6) for k, v in theirs(inputs).items()}

    monkeypatch.setattr(peers_table, "torch_computes", other)
    with pytest.raises(ValueError, match="PyTorch and the twin differ by 1.0e-06 in"):
        peers_table.torch_errors(case)
