"""The table of kernel cases.

A shape is written 768x128 and read by the op's axes: the letters are those of the kernels' own
docstrings. The families of ops are in `row_cases.py` and `product_cases.py`.
"""

import functools
from collections.abc import Iterable

from fastformer.backend import OPS
from fastformer.bench.product_cases import PRODUCTS
from fastformer.bench.row_cases import ROWS
from fastformer.bench.spec import SIZES, Case, Shape, Spec
from fastformer.errors import InvalidValueError


@functools.cache
def specs() -> tuple[Spec, ...]:
    """Return all specs, in the order of the ops."""
    order = [op for ops in OPS.values() for op in ops]
    return tuple(sorted((*PRODUCTS, *ROWS), key=lambda spec: order.index(spec.op)))


def table(ops: Iterable[str] | None = None, shapes: Iterable[Shape] = ()) -> list[Case]:
    """Return the cases of some ops.

    Args:
        ops: names of ops; None for all.
        shapes: shapes to use in place of the table's; ops with other numbers of axes are left out.

    Raises:
        ValueError: shapes that none of the ops can take.
    """
    wanted = set(ops if ops is not None else (spec.op for spec in specs()))
    chosen = [spec for spec in specs() if spec.op in wanted]
    given = list(shapes)
    if not given:
        cases = [Case(spec, shape) for spec in chosen for s in SIZES for shape in spec.shapes(s)]
        return list(dict.fromkeys(cases))
    cases = [Case(spec, shape) for spec in chosen for shape in given if _takes(spec, shape)]
    if not cases:
        axes = sorted({f"{spec.op} takes {'x'.join(spec.axes)}" for spec in chosen})
        text = ", ".join("x".join(map(str, shape)) for shape in given)
        raise InvalidValueError(
            f"no op takes the shapes {text}: {'; '.join(axes[:6])}"
            f"{'; ...' if len(axes) > 6 else ''}"
        )
    return cases


def _takes(spec: Spec, shape: Shape) -> bool:
    """Tell whether a shape has the spec's axes, and heads that divide the width."""
    if len(shape) != len(spec.axes):
        return False
    return "H" not in spec.axes or shape[spec.axes.index("C")] % shape[spec.axes.index("H")] == 0


def find(op: str, variant: str, shape: Iterable[int]) -> Case:
    """Return the case that another process has named."""
    (spec,) = (s for s in specs() if s.op == op and s.variant == variant)
    return Case(spec, tuple(shape))
