"""Rows as tables of text: for a terminal, and as the README's markdown."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fastformer.bench.environment import LABELS
from fastformer.bench.options import Row

Cells = list[str]
Table = tuple[Cells, list[Cells]]


def seconds_text(seconds: float) -> str:
    """Write a time with the unit that suits it."""
    if not math.isfinite(seconds):
        return "never"
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def ratio_text(ratio: float) -> str:
    """Write a ratio."""
    return f"{ratio:.2f}"


def spread_text(
    value: Mapping[str, float] | None, write: Callable[[float], str] = ratio_text
) -> str:
    """Write a median with its minimum and maximum, for instance `3.1 (2.9 to 3.3)`."""
    if value is None:
        return "-"
    low, middle, high = (write(value[key]) for key in ("minimum", "median", "maximum"))
    return middle if low == high else f"{middle} ({low} to {high})"


def kernel_cells(rows: Iterable[Row], labels: Mapping[str, str] = LABELS) -> Table:
    """Return the header and the lines of the table of kernels.

    Args:
        rows: of the suite "kernels".    labels: what to call each system.
    """
    header = ["case", "system", "time", "GFLOP/s", "GB/s", "of the limit", "its time / ours"]
    body = []
    last = None
    for row in rows:
        body.append(
            [
                "" if row["case"] == last else row["case"],
                labels[row["system"]],
                seconds_text(row["seconds"]["median"]),
                f"{row['gflops']:.3g}",
                f"{row['gbytes']:.3g}",
                f"{row['share_of_peak']:.0%} {row['bound']}",
                spread_text(row.get("ratio")),
            ]
        )
        last = row["case"]
    return header, body


def text_table(table: Table) -> list[str]:
    """Return a table as lines of text, columns aligned."""
    header, body = table
    widths = [max(len(line[i]) for line in [header, *body]) for i in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [header, ["-" * width for width in widths], *body]
    ]


def markdown_table(table: Table, environment: Mapping[str, Any]) -> str:
    """Return a table as markdown, with machine, versions, commit and date below it."""
    header, body = table
    lines = [header, ["---"] * len(header), *body]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{text}\n\n{environment_text(environment)}"


def environment_text(environment: Mapping[str, Any]) -> str:
    """Say in one line what was measured where and when."""
    versions = ", ".join(f"{name} {found}" for name, found in environment["versions"].items())
    commit = f"commit {environment['commit']}, " if environment["commit"] else ""
    return (
        f"{environment['cpu']}, {environment['threads']} threads, {environment['system']}, "
        f"Python {environment['python']}, {versions}; {commit}{environment['date']}."
    )


def machine_lines(machine: Mapping[str, Any]) -> list[str]:
    """Describe the machine's measured limits."""
    fma, bandwidth = machine["fma"], machine["bandwidth"]

    def pair(one: float, every: float, scale: float = 1e9) -> str:
        return f"{one / scale:,.0f} on one thread, {every / scale:,.0f} on {machine['threads']}"

    memory = bandwidth["one"][-1][1], bandwidth["all"][-1][1]
    cached = ", ".join(
        f"{size / 2**20:.1f} MiB {speed / 1e9:,.0f}" for size, speed in bandwidth["all"][:-1]
    )
    return [
        f"float32  {pair(fma['float32']['one'], fma['float32']['all'])} GFLOP/s",
        f"float64  {pair(fma['float64']['one'], fma['float64']['all'])} GFLOP/s",
        f"memory   {pair(*memory)} GB/s; within caches on {machine['threads']} threads: {cached}",
        f"calls    {seconds_text(machine['kernel_call'])} for a kernel, and "
        f"{seconds_text(machine['parallel_region'])} to start a parallel region",
    ]


def profile_lines(workload: str, found: Mapping[str, Any]) -> list[str]:
    """Describe where a step's time goes, the most expensive kernel first."""
    step, wide = found["watched_step"], max(24, *map(len, found["ops"]))
    lines = [
        f"{workload}: {seconds_text(found['step'])} a step, {found['calls']:.0f} kernel calls",
        f"{'kernel, or layer and op':<{wide}} {'calls':>6} {'time':>10} {'share':>7} "
        f"{'of peak':>8}",
    ]
    ranked = sorted(found["ops"].items(), key=lambda item: -item[1]["seconds"])
    for op, used in ranked:
        speed = used["flops"] / max(used["seconds"], 1e-12) / found["peak"]
        lines.append(
            f"{op:<{wide}} {used['calls']:>6.0f} {seconds_text(used['seconds']):>10} "
            f"{used['seconds'] / step:>7.1%}" + (f" {speed:>8.0%}" if used["flops"] else "")
        )
    lines.append(
        f"{'Python, outside kernels':<{wide}} {'':>6} {seconds_text(found['outside']):>10} "
        f"{found['outside'] / step:>7.1%}"
    )
    lines.append(
        f"{'(calling them)':<{wide}} {'':>6} {seconds_text(found['calling']):>10} "
        f"{found['calling'] / step:>7.1%}  within the kernels' times above"
    )
    return lines
