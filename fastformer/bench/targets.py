"""All targets in one run: each row alternates whole processes of ours and of the peers."""

import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastformer.bench.busy import busy_rows
from fastformer.bench.environment import is_installed
from fastformer.bench.goals import GOALS, target_row
from fastformer.bench.options import Options, Outcome, Row, measured_machine
from fastformer.bench.processes import Result, alternate, ratios, run_worker, spread
from fastformer.bench.step_suite import GROUPS, prepare, time_group
from fastformer.bench.workloads import WORKLOADS, useful_flops

# (M, K, N) of the digit encoder, of nanoGPT's CPU recipe with a tail, and of baby GPT.
PRODUCT_SHAPES = (
    *((640, 64, 192), (640, 64, 64), (640, 64, 256), (640, 256, 64)),
    *((256, 64, 192), (256, 64, 256)),
    *((768, 128, 384), (768, 128, 512), (768, 512, 128), (768, 128, 65)),
    *((512, 384, 1152), (512, 384, 384), (512, 384, 1536), (512, 1536, 384)),
)
PRODUCT_SECONDS = 0.05
LEARNING_SEEDS = 100

Found = Mapping[str, list[Result]]


def _present(*systems: str) -> list[str]:
    return [system for system in systems if is_installed(system)]


def _compare(row: str, ours: Sequence[float], theirs: Mapping[str, Sequence[float]],
             **more: Any) -> Row:  # fmt: skip
    """Describe a row whose value is the ratio to the best peer, or our own number."""
    goal = GOALS[row]
    peers = {
        name: {"value": spread(values).as_dict(), "ratio": ratios(values, ours).as_dict()}
        for name, values in theirs.items()
    }
    best = min(theirs, key=lambda name: statistics.median(theirs[name]), default=None)
    if goal.unit == "s":
        value = spread(ours)
    elif best is None:
        value = None
    elif goal.unit == "share":
        value = ratios(ours, theirs[best])
    else:
        value = ratios(theirs[best], ours)
    return target_row(goal, value, spread(ours), peers, best, **more)


def _medians(found: Found, system: str, workload: str) -> list[float]:
    return [result[workload]["median"] for result in found[system]]


def _step_rows(found: Found, machine: Mapping[str, Any], names: Sequence[str]) -> list[Row]:
    """Describe P1 to P5, P9 and P12 as far as the workloads of a group give them."""
    rows: list[Row] = []
    frameworks = [system for system in found if system not in ("numba", "llmlearn")]
    # P3 is P2's work for us, and P1's for peers that compute the padding.
    kinds = [(name, name, name) for name in names]
    kinds += [("P3", "P2", "P1")] if "P2" in names else []
    for row, our_work, their_work in kinds:
        ours = _medians(found, "numba", our_work)
        flops = useful_flops("numba", WORKLOADS[our_work])
        theirs = {system: _medians(found, system, their_work) for system in frameworks}
        gflops = flops / statistics.median(ours) / 1e9
        share = gflops * 1e9 / machine["fma"]["float32"]["all"]
        rows.append(_compare(row, ours, theirs, gflops={"numba": gflops}, share_of_peak=share))
    if "llmlearn" in found:
        original = {"llmlearn": _medians(found, "llmlearn", "P1")}
        rows.append(_compare("P9", _medians(found, "numba", "P2"), original))
    if "P5" in names:
        memory = {
            system: [float(result["P5"]["peak_bytes"]) for result in found[system]]
            for system in found
        }
        own_memory = memory.pop("numba")
        eager = {name: values for name, values in memory.items() if name == "torch"}
        rows.append(_compare("P12", own_memory, eager))
    return rows


def _product_rows(options: Options) -> list[Row]:
    """Describe P8: for each product the better of the peers counts."""
    systems = _present("numba", "numpy", "torch")
    shapes = [list(shape) for shape in PRODUCT_SHAPES]
    options.report("checking the matrix products")
    run_worker("numba", {"kind": "check products", "shapes": shapes}, options.threads)

    def job(system: str, turn: int) -> Result:
        seconds = min(PRODUCT_SECONDS, options.seconds)
        product = {"kind": "products", "shapes": shapes, "seconds": seconds}
        return run_worker(system, product, options.threads)

    found = alternate(systems, options.repeats, job, options.report, "matrix products")
    per_product: list[Row] = []
    by_turn: list[list[float]] = [[] for _ in range(options.repeats)]
    for index, timed in enumerate(found["numba"][0]["times"]):
        times = {s: [result["times"][index]["median"] for result in found[s]] for s in systems}
        ours = times.pop("numba")
        best = min(times, key=lambda name: statistics.median(times[name]))
        ratio = ratios(times[best], ours)
        for turn, (a, b) in enumerate(zip(times[best], ours, strict=True)):
            by_turn[turn].append(a / b)
        flops = 2 * math.prod(timed["shape"])
        gflops = {"numba": flops / statistics.median(ours) / 1e9}
        gflops |= {s: flops / statistics.median(values) / 1e9 for s, values in times.items()}
        per_product.append(
            {
                "shape": timed["shape"],
                "form": timed["form"],
                "gflops": gflops,
                "ratio": ratio.as_dict(),
            }
        )
    means = [statistics.geometric_mean(turn) for turn in by_turn]
    worst = min(per_product, key=lambda product: product["ratio"]["median"])
    name = f"{'x'.join(map(str, worst['shape']))} {worst['form']}"
    lowest = ratios([worst["ratio"][key] for key in ("median", "minimum", "maximum")], [1, 1, 1])
    gflops = {
        system: statistics.geometric_mean([product["gflops"][system] for product in per_product])
        for system in systems
    }
    return [
        target_row(GOALS["P8"], spread(means), None, {}, gflops=gflops, products=per_product),
        target_row(GOALS["P8 worst"], lowest, None, {}, gflops=worst["gflops"], product=name),
    ]


def _start_rows(options: Options, data: str) -> list[Row]:
    """Describe P10, with empty caches, and P11, with full ones."""

    def start(system: str, turn: int, cold: bool) -> Result:
        with tempfile.TemporaryDirectory() as cache:
            caches = {"FASTFORMER_CACHE_DIR": cache, "TORCHINDUCTOR_CACHE_DIR": cache}
            job = {"kind": "start", "data": data, "started": time.monotonic()}
            return run_worker(system, job, options.threads, environment=caches if cold else {})

    rows = []
    for row, peer, cold in (("P10", "compile", True), ("P11", "torch", False)):
        found = alternate(
            _present("numba", peer),
            options.repeats,
            lambda system, turn, cold=cold: start(system, turn, cold),  # type: ignore[misc]
            options.report,
            f"{'cold' if cold else 'warm'} start",
        )
        seconds = {s: [result["seconds"] for result in results] for s, results in found.items()}
        rows.append(_compare(row, seconds.pop("numba"), seconds))
    return rows


def _learning_row(options: Options, directory: Path) -> Row:
    """Describe P13: another seed in every turn, the same for all systems."""
    seeds = [LEARNING_SEEDS + turn for turn in range(options.repeats)]
    for seed in seeds:
        path = str(directory / f"seed{seed}.npz")
        job = {"kind": "prepare", "workload": "P2", "path": path, "checks": 0, "seed": seed}
        run_worker("reference", job, options.threads)

    def learn(system: str, turn: int) -> Result:
        weights = str(directory / f"seed{seeds[turn]}.npz")
        job = {"kind": "learn", "seed": seeds[turn], "weights": weights}
        return run_worker(system, job, options.threads)

    systems = _present("numba", "torch", "jax")
    found = alternate(systems, options.repeats, learn, options.report, "learning")
    seconds = {s: [result["seconds"] for result in results] for s, results in found.items()}
    steps = {s: [result["steps"] for result in results] for s, results in found.items()}
    return _compare("P13", seconds.pop("numba"), seconds, steps=steps)


def run(options: Options) -> Outcome:
    """Measure every target.

    Raises:
        FastformerError: a kernel or a system computes something else.
    """
    machine = measured_machine(options)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        losses: dict[str, list[float]] = {}
        for names, factor in GROUPS:
            options.report(f"preparing {' and '.join(names)}")
            expected = {name: prepare(name, directory, options.threads) for name in names}
            losses |= expected
            systems = [*options.systems, *(["llmlearn"] if "P2" in names else [])]
            seconds = options.seconds * factor
            found = time_group(names, systems, expected, directory, options, seconds)
            rows += _step_rows(found, machine, names)
        rows += _product_rows(options)
        rows += _start_rows(options, str(directory / "P2.npz"))
        rows.append(_learning_row(options, directory))
        factors = {name: factor for names, factor in GROUPS for name in names}
        rows += busy_rows(directory, options, losses, factors)
    order = list(GOALS)
    return Outcome(sorted(rows, key=lambda row: order.index(row["row"])), machine)
