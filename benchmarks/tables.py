"""The tables of whole steps, of targets and of scaling."""

from collections.abc import Iterable, Sequence

from benchmarks.systems import LABELS
from fastformer.bench.options import Row
from fastformer.bench.tables import Table, kernel_cells, ratio_text, seconds_text, spread_text


def _step_cells(rows: Iterable[Row]) -> Table:
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


def _is_memory(row: Row) -> bool:
    """Tell whether a target's numbers are bytes, and not seconds."""
    return row["unit"] == "share" or "memory" in row["title"]


def _own_text(row: Row) -> str:
    """Write our own number of a target, and its share of the machine's peak where it has one."""
    ours = row["ours"]
    if ours is None:
        return f"{row['gflops']['numba']:.0f} GFLOP/s" if "gflops" in row else "-"
    if _is_memory(row):
        return f"{ours['median'] / 1e6:,.0f} MB"
    share = f" ({row['share_of_peak']:.0%} of the peak)" if "share_of_peak" in row else ""
    return f"{seconds_text(ours['median'])}{share}"


def _peers_text(row: Row) -> str:
    """Write the peers' numbers of a target."""
    texts = []
    for name, peer in row["peers"].items():
        number = peer["value"]["median"]
        text = f"{number / 1e6:,.0f} MB" if _is_memory(row) else seconds_text(number)
        texts.append(f"{LABELS[name]} {text}")
    rates = row.get("gflops", {}) if row["ours"] is None else {}
    texts += [f"{LABELS[s]} {rate:.0f} GFLOP/s" for s, rate in rates.items() if s != "numba"]
    return ", ".join(texts) or "-"


def _target_cells(rows: Iterable[Row]) -> Table:
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
                spread_text(row["value"], seconds_text if row["unit"] == "s" else ratio_text),
                f"{sign} {row['must']:g}{unit}",
                f"{sign} {row['goal']:g}{unit}",
                row["reached"],
            ]
        )
    return header, body


def _scaling_cells(rows: Iterable[Row]) -> Table:
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


def _rank_cells(rows: Iterable[Row]) -> Table:
    header = ["", "processes x threads", "gradients", "step", "exchange", "by", "optimizer",
              "speed beside one process"]  # fmt: skip
    body = []
    last = None
    for row in rows:
        alone = row["ranks"] == 1
        body.append(
            [
                "" if row["workload"] == last else row["workload"],
                f"{row['ranks']} x {row['threads']}{' (oversubscribed)' * row['oversubscribed']}",
                f"{row['bytes'] / 1e6:,.0f} MB",
                seconds_text(row["step"]["median"]),
                "-" if alone else seconds_text(row["exchange"]["median"]),
                "-" if alone else "memory" if row["in_memory"] else "messages",
                seconds_text(row["optimizer"]["median"]),
                spread_text(row["speed"]),
            ]
        )
        last = row["workload"]
    return header, body


def cells(suite: str, rows: Sequence[Row]) -> Table:
    """Return the header and the lines of a suite's table."""
    if suite == "kernels":
        return kernel_cells(rows, LABELS)
    tables = {
        "steps": _step_cells, "targets": _target_cells, "scaling": _scaling_cells,
        "text": _target_cells, "ranks": _rank_cells,
    }  # fmt: skip
    return tables[suite](rows)
