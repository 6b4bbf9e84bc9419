"""A picture of the rows of kernels: each below what the machine allows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastformer.analysis.figures import INK, default_style, dress, new_figure, save_picture
from fastformer.bench.options import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEAST_INTENSITY = 2.0**-5


def _roof(axes: "Axes", machine: Mapping[str, Any]) -> None:
    """Draw what the machine allows: memory and caches on the left, arithmetic at the top."""
    x = [LEAST_INTENSITY * 2.0 ** (power / 8) for power in range(15 * 8 + 1)]
    peaks = machine["fma"]["float32"]
    levels = machine["bandwidth"]["all"]
    shown = [(levels[-1], "memory", "-"), (max(levels, key=lambda level: level[1]), "cache", "--")]
    for (_, bandwidth), name, style in shown:
        axes.plot(x, [min(bandwidth * i, peaks["all"]) / 1e9 for i in x], style, color=INK, lw=1.4)
        axes.annotate(
            f"{name} {bandwidth / 1e9:,.0f} GB/s", (x[2], bandwidth * x[2] / 1e9), rotation=33,
            textcoords="offset points", xytext=(0, 5), fontsize=8, color=INK,
            rotation_mode="anchor", bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )  # fmt: skip
    for threads, label in (("all", f"{machine['threads']} threads"), ("one", "one thread")):
        axes.axhline(peaks[threads] / 1e9, color=INK, lw=1.0, ls="-" if threads == "all" else ":")
        axes.annotate(
            f"{peaks[threads] / 1e9:,.0f} GFLOP/s, {label}", (x[0], peaks[threads] / 1e9),
            textcoords="offset points", xytext=(0, 3), fontsize=8, color=INK,
        )  # fmt: skip


@default_style()
def roofline(rows: Sequence[Row], machine: Mapping[str, Any], path: Path) -> Path:
    """Draw each kernel's arithmetic rate against its arithmetic a byte, below the roof.

    Args:
        rows: of the suite "kernels".    machine: its limits.    path: of the PNG.
    """
    from matplotlib import colormaps

    figure = new_figure(10, 6.4)
    axes = figure.subplots()
    _roof(axes, machine)
    # Those that only copy are far to the left, and far below any limit of arithmetic.
    own = [
        row
        for row in rows
        if row["system"] in ("numba", "yours") and row["flops"] > row["traffic"] * LEAST_INTENSITY
    ]
    ops = list(dict.fromkeys(row["op"] for row in own))
    palette, markers = colormaps["tab20"].colors, "osD^vP*X"  # type: ignore[attr-defined]
    for index, op in enumerate(ops):
        chosen = [row for row in own if row["op"] == op]
        axes.scatter(
            [row["flops"] / row["traffic"] for row in chosen],
            [row["gflops"] for row in chosen],
            s=46, color=palette[index % 20], marker=markers[index % len(markers)],
            edgecolor="white", linewidth=0.6, label=op, zorder=3,
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("arithmetic intensity, operations a byte", color=INK)
    axes.set_ylabel("GFLOP/s", color=INK)
    axes.set_title("fastformer's kernels below the machine's limits, float32", loc="left")
    dress(axes)
    axes.legend(fontsize=8, ncols=1, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return save_picture(figure, path)
