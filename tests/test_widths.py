"""The tests of kernels with narrower registers than this CPU has: run them with -m variants.

They take as long as all other tests together, for at each width all is compiled anew.
"""

import subprocess
from collections.abc import Iterator

import pytest
from program import ROOT
from twins import assert_passes, start_run

from fastformer.kernels._llvm import VECTOR_BITS

pytestmark = pytest.mark.variants

# Of a file of kernels, by its stem; how kernels are compiled depends on no width.
KERNEL_TESTS = sorted(
    path.name
    for source in (ROOT / "kernels").glob("*.py")
    if (path := ROOT / f"tests/test_{source.stem.lstrip('_')}.py").exists()
    and source.stem != "_compile"
)
# Of a single lane: every operation, tiles and panels, a kernel on rows.
LANE_TESTS = ["test_simd.py", "test_tile.py", "test_bfloat16.py", "test_softmax.py"]
TESTS = {0: LANE_TESTS, 128: KERNEL_TESTS, 256: KERNEL_TESTS}
OTHER_WIDTHS = [bits for bits in TESTS if bits < VECTOR_BITS]


@pytest.fixture(scope="module")
def runs() -> Iterator[dict[int, "subprocess.Popen[str]"]]:
    """Start the runs for all widths at once: they mostly compile, each on one core."""
    runs = {
        bits: start_run(*TESTS[bits], FASTFORMER_VECTOR_BITS=str(bits)) for bits in OTHER_WIDTHS
    }
    yield runs
    for run in runs.values():
        run.kill()
        run.wait()


def test_every_operation_has_its_tests() -> None:
    assert {"test_matmul.py", "test_attention.py", "test_simd.py", "test_tile.py"} < {*KERNEL_TESTS}
    assert len(KERNEL_TESTS) >= 20


@pytest.mark.parametrize("bits", OTHER_WIDTHS)
def test_another_width(runs: dict[int, "subprocess.Popen[str]"], bits: int) -> None:
    assert_passes(runs[bits])
