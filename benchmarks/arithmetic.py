"""The arithmetic of a training step, and steps of other sizes."""

from dataclasses import replace

from fastformer.bench.workloads import Workload


def resized(workload: Workload, **sizes: int) -> Workload:
    """Return the workload with other sizes, named after them."""
    name = ", ".join(f"{key}={value}" for key, value in sizes.items())
    return replace(workload, name=f"{workload.name} {name}", **sizes)  # type: ignore[arg-type]


def step_flops(workload: Workload, *, reads_one_row: bool) -> float:
    """Return the operations of the products of one training step; a multiply-add is two.

    A product's backward has two of its kind. Attention's has five where its forward has two:
    the weights are computed again.

    Args:
        workload: the model and its batch.
        reads_one_row: whether an encoder's last block computes only the row that is read out, as
            fastformer does; its keys and values need all rows.
    """
    w = workload
    attention_pairs = w.B * (w.T * (w.T + 1) // 2 if w.kind == "decoder" else w.T * w.T)
    block = 2 * w.tokens * (4 * w.C * w.C + 2 * w.C * w.F) * 3 + 14 * attention_pairs * w.C
    last = block
    if w.kind == "encoder" and reads_one_row:
        keys_and_values = 2 * w.tokens * 2 * w.C * w.C * 3
        last = keys_and_values + 2 * w.B * (2 * w.C * w.C + 2 * w.C * w.F) * 3
        last += 14 * w.B * w.T * w.C
    read_out_rows = w.B if w.kind == "encoder" else w.tokens
    return float(block * (w.L - 1) + last + 2 * read_out_rows * w.C * w.V * 3)


def useful_flops(system: str, workload: Workload) -> float:
    """Return the operations of a system's step: only fastformer leaves out what nobody reads."""
    ours = system in ("numba", "numba-1", "reference")
    return step_flops(workload, reads_one_row=ours)
