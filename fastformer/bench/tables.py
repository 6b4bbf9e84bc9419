"""Rows as tables of text: for a terminal, and as the README's markdown."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastformer.bench.environment import LABELS
from fastformer.bench.options import Row

Cells = list[str]


def seconds_text(seconds: float) -> str:
    """Write a time with the unit that suits it."""
    if not math.isfinite(seconds):
        return "never"
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def spread_text(value: Mapping[str, float] | None, unit: str = "x") -> str:
    """Write a median with its minimum and maximum, for instance `3.1 (2.9 to 3.3)`."""
    if value is None:
        return "-"
    low, middle, high = (_number(value[key], unit) for key in ("minimum", "median", "maximum"))
    return middle if low == high else f"{middle} ({low} to {high})"


def _number(value: float, unit: str) -> str:
    if unit == "s":
        return seconds_text(value)
    return f"{value:.2f}"


def _kernel_cells(rows: Iterable[Row]) -> tuple[Cells, list[Cells]]:
    header = ["case", "system", "time", "GFLOP/s", "GB/s", "of the limit", "its time / ours"]
    body = []
    last = None
    for row in rows:
        body.append(
            [
                "" if row["case"] == last else row["case"],
                LABELS[row["system"]],
                seconds_text(row["seconds"]["median"]),
                f"{row['gflops']:.3g}",
                f"{row['gbytes']:.3g}",
                f"{row['share_of_peak']:.0%} {row['bound']}",
                spread_text(row.get("ratio")),
            ]
        )
        last = row["case"]
    return header, body


def _step_cells(rows: Iterable[Row]) -> tuple[Cells, list[Cells]]:
    header = ["step", "system", "time", "tokens/s", "GFLOP/s", "of the peak", "memory",
              "its time / ours"]  # fmt: skip
    body = []
    last = None
    for row in rows:
        body.append(
            [
                "" if row["workload"] == last else f"{row['workload']} {row['title']}",
                LABELS[row["system"]],
                seconds_text(row["seconds"]["median"]),
                f"{row['tokens_per_second']:,.0f}",
                f"{row['gflops']:.0f}",
                f"{row['share_of_peak']:.0%}",
                f"{row['peak_bytes'] / 1e6:,.0f} MB",
                spread_text(row.get("ratio")),
            ]
        )
        last = row["workload"]
    return header, body


def _own_text(row: Row) -> str:
    """Write our own number of a target, and its share of the machine's peak where it has one."""
    ours = row["ours"]
    if ours is None:
        return f"{row['gflops']['numba']:.0f} GFLOP/s" if "gflops" in row else "-"
    if row["unit"] == "share":
        return f"{ours['median'] / 1e6:,.0f} MB"
    share = f" ({row['share_of_peak']:.0%} of the peak)" if "share_of_peak" in row else ""
    return f"{seconds_text(ours['median'])}{share}"


def _peers_text(row: Row) -> str:
    """Write the peers' numbers of a target."""
    texts = []
    for name, peer in row["peers"].items():
        number = peer["value"]["median"]
        text = f"{number / 1e6:,.0f} MB" if row["unit"] == "share" else seconds_text(number)
        texts.append(f"{LABELS[name]} {text}")
    rates = row.get("gflops", {}) if row["ours"] is None else {}
    texts += [f"{LABELS[s]} {rate:.0f} GFLOP/s" for s, rate in rates.items() if s != "numba"]
    return ", ".join(texts) or "-"


def _target_cells(rows: Iterable[Row]) -> tuple[Cells, list[Cells]]:
    header = ["", "what", "ours", "peers", "measured", "must", "goal", "reached"]
    body = []
    for row in rows:
        sign = ">=" if row["unit"] == "x" else "<="
        unit = " s" if row["unit"] == "s" else ""
        body.append(
            [
                row["row"],
                f"{row['title']}, {row['product']}" if "product" in row else row["title"],
                _own_text(row),
                _peers_text(row),
                spread_text(row["value"], row["unit"]),
                f"{sign} {row['must']:g}{unit}",
                f"{sign} {row['goal']:g}{unit}",
                row["reached"],
            ]
        )
    return header, body


def _scaling_cells(rows: Iterable[Row]) -> tuple[Cells, list[Cells]]:
    header = ["series", "value", "tokens", "GFLOP", "time", "GFLOP/s", "tokens/s", "step's memory",
              "a token"]  # fmt: skip
    body = []
    last = None
    for row in rows:
        body.append(
            [
                "" if row["series"] == last else row["series"],
                f"{row['value']:,}",
                f"{row['tokens']:,}",
                f"{row['flops'] / 1e9:.3g}",
                seconds_text(row["seconds"]["median"]),
                f"{row['gflops']:.0f}",
                f"{row['tokens_per_second']:,.0f}",
                f"{row['step_bytes'] / 1e6:,.0f} MB",
                f"{row['step_bytes'] / row['tokens'] / 1e3:.1f} kB",
            ]
        )
        last = row["series"]
    return header, body


_CELLS = {
    "kernels": _kernel_cells,
    "steps": _step_cells,
    "targets": _target_cells,
    "scaling": _scaling_cells,
}


def cells(suite: str, rows: Sequence[Row]) -> tuple[Cells, list[Cells]]:
    """Return the header and the lines of a suite's table."""
    return _CELLS[suite](rows)


def text_table(suite: str, rows: Sequence[Row]) -> list[str]:
    """Return a suite's table as lines of text, columns aligned."""
    header, body = cells(suite, rows)
    widths = [max(len(line[i]) for line in [header, *body]) for i in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [header, ["-" * width for width in widths], *body]
    ]


def markdown_table(suite: str, rows: Sequence[Row], environment: Mapping[str, Any]) -> str:
    """Return a suite's table as markdown, with machine, versions, commit and date below it."""
    header, body = cells(suite, rows)
    lines = [header, ["---"] * len(header), *body]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table}\n\n{environment_text(environment)}"


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
