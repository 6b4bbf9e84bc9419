"""The targets: what must be reached, what is hoped for, and all of it measured in one run.

Each row alternates whole processes of ours and of the peers.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.arithmetic import useful_flops
from benchmarks.busy import measure_busy
from benchmarks.generation_jobs import NEW_TOKENS, require_equal
from benchmarks.step_suite import GROUPS, prepare, time_group
from benchmarks.systems import PEERS, is_installed
from fastformer.bench.options import Options, Outcome, Row, measured_machine
from fastformer.bench.processes import Result, Spread, alternate, ratios, run_worker, spread
from fastformer.bench.workloads import WORKLOADS

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


@dataclass(frozen=True)
class Goal:
    """One target.

    Attributes:
        row: its name.    title: what is measured.    unit: "x" for a ratio of times, "s" for
            seconds, "share" for a share of the peer's memory, "times" for how many times as long
            as the peer's, "nats" for a loss.
        must, goal: the value to reach.    peers: what it is measured beside.
    """

    row: str
    title: str
    unit: str
    must: float
    goal: float
    peers: tuple[str, ...]

    @property
    def more_is_better(self) -> bool:
        """Whether larger values are better: ratios."""
        return self.unit == "x"

    def verdict(self, value: float | None) -> str:
        """Return "goal", "must", "missed", or "not measured"."""
        if value is None:
            return "not measured"
        for name, wanted in (("goal", self.goal), ("must", self.must)):
            if value >= wanted if self.more_is_better else value <= wanted:
                return name
        return "missed"


_FRAMEWORKS = tuple(PEERS)
GOALS = {
    goal.row: goal
    for goal in (
        Goal("P1", "digit encoder, 20 tokens", "x", 2.8, 3.6, _FRAMEWORKS),
        Goal("P2", "digit encoder, 8 tokens, peers given 8", "x", 4, 7, _FRAMEWORKS),
        Goal("P3", "digit encoder, 8 tokens, peers padded to 20", "x", 8, 14, _FRAMEWORKS),
        Goal("P4", "nanoGPT's CPU recipe", "x", 1.6, 2, _FRAMEWORKS),
        Goal("P5", "baby GPT, float32", "x", 1.3, 1.5, _FRAMEWORKS),
        Goal("P8", "matrix products, geometric mean", "x", 1.1, 1.25, ("numpy", "torch")),
        Goal("P8 worst", "matrix products, the worst", "x", 0.95, 1.0, ("numpy", "torch")),
        Goal("P9", "beside a step that costs what llmlearn's does", "x", 20, 30, ("llmlearn",)),
        Goal("P10", "cold start to the first step", "s", 20, 10, ("compile",)),
        Goal("P11", "warm start to the first step", "s", 1.5, 0.8, ("torch",)),
        Goal("P12", "largest resident memory of P5", "share", 0.6, 0.4, ("torch",)),
        Goal("P13", "from the first step to 99 % of unseen inputs", "s", 2, 0.7, ("torch", "jax")),
        Goal("P14", "busy cores, beside the best fixed threads", "times", 1.25, 1.1, ("torch",)),
        Goal("P14 quiet", "the same on quiet cores", "times", 1.02, 1.0, ("torch",)),
        Goal("P15", "generation, one prompt", "x", 5, 8, ("transformers",)),
        Goal("P15 many", "generation, 32 prompts", "x", 3, 5, ("transformers",)),
    )
}
_PROMPTS = {"P15": 1, "P15 many": 32}


def target_row(
    goal: Goal,
    value: Spread | None,
    ours: Spread | None,
    peers: Mapping[str, Mapping[str, Any]],
    best: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Describe a target's measurement.

    Args:
        goal: the target.    value: what is held to it, or None where no peer was there.
        ours: our own time or memory.
        peers: for each peer its own, and the ratio to ours.    best: the best peer.
        more: what else is worth keeping.
    """
    return {
        "suite": "targets",
        "row": goal.row,
        "title": goal.title,
        "unit": goal.unit,
        "must": goal.must,
        "goal": goal.goal,
        "value": value.as_dict() if value else None,
        "ours": ours.as_dict() if ours else None,
        "peers": {name: dict(peer) for name, peer in peers.items()},
        "best_peer": best,
        "reached": goal.verdict(value.median if value else None),
        **more,
    }


def _present(*systems: str) -> list[str]:
    return [system for system in systems if is_installed(system)]


def _compare(row: str, ours: Sequence[float], theirs: Mapping[str, Sequence[float]],
             **more: Any) -> Row:  # fmt: skip
    return compare(GOALS[row], ours, theirs, **more)


def compare(goal: Goal, ours: Sequence[float], theirs: Mapping[str, Sequence[float]],
            **more: Any) -> Row:  # fmt: skip
    """Describe a row whose value is the ratio to the best peer, or our own number."""
    peers = {
        name: {"value": spread(values).as_dict(), "ratio": ratios(values, ours).as_dict()}
        for name, values in theirs.items()
    }
    best = min(theirs, key=lambda name: statistics.median(theirs[name]), default=None)
    if goal.unit == "s":
        value = spread(ours)
    elif best is None:
        value = None
    elif goal.unit in ("share", "times"):
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
    check = {"task": "benchmarks.product_jobs:check_products", "shapes": shapes}
    run_worker("numba", check, options.threads)

    def job(system: str, turn: int) -> Result:
        job = {
            "task": "benchmarks.product_jobs:time_products",
            "system": system,
            "shapes": shapes,
            "seconds": min(PRODUCT_SECONDS, options.seconds),
        }
        return run_worker(system, job, options.threads)

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
            task = {"task": "benchmarks.step_jobs:time_start", "system": system, "data": data}
            job = {**task, "started": time.monotonic()}
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
        task = {"task": "benchmarks.step_jobs:prepare", "workload": "P2", "path": path}
        run_worker("reference", {**task, "checks": 0, "seed": seed}, options.threads)

    def learn(system: str, turn: int) -> Result:
        weights = str(directory / f"seed{seeds[turn]}.npz")
        task = {"task": "benchmarks.learn_jobs:time_to_learn", "system": system}
        return run_worker(
            system, {**task, "seed": seeds[turn], "weights": weights}, options.threads
        )

    systems = _present("numba", "torch", "jax")
    found = alternate(systems, options.repeats, learn, options.report, "learning")
    seconds = {s: [result["seconds"] for result in results] for s, results in found.items()}
    steps = {s: [result["steps"] for result in results] for s, results in found.items()}
    return _compare("P13", seconds.pop("numba"), seconds, steps=steps)


def generation_rows(options: Options, directory: Path) -> list[Row]:
    """Describe P15: greedy texts of one prompt and of many, beside transformers with its cache."""
    path = str(directory / "generation.npz")
    jobs = "benchmarks.generation_jobs:"
    run_worker("numba", {"task": jobs + "prepare", "path": path}, options.threads)
    rows = []
    for row, prompts in _PROMPTS.items():

        def write(system: str, turn: int, prompts: int = prompts) -> Result:
            job = {"task": jobs + "write", "system": system, "path": path, "prompts": prompts}
            return run_worker("numba" if system == "numba" else "torch", job, options.threads)

        systems = _present("numba", "transformers")
        found = alternate(systems, options.repeats, write, options.report, GOALS[row].title)
        for results in found.values():
            require_equal(results[0]["tokens"], found["numba"][0]["tokens"])
        seconds = {s: [result["seconds"] for result in results] for s, results in found.items()}
        rows.append(_compare(row, seconds.pop("numba"), seconds, tokens=prompts * NEW_TOKENS))
    return rows


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
        rows += generation_rows(options, directory)
        factors = {name: factor for names, factor in GROUPS for name in names}
        busy = measure_busy(directory, options, losses, factors)
        rows += [target_row(GOALS[row], **found) for row, found in busy.items()]
    order = list(GOALS)
    return Outcome(sorted(rows, key=lambda row: order.index(row["row"])), machine)
