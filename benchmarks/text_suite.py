"""Work on text: a step of GPT-2, tokens of a large text, the loop on them, and nanoGPT's recipe."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.step_jobs import require_equal_losses
from benchmarks.step_suite import prepare, time_group
from benchmarks.systems import is_installed
from benchmarks.targets import Goal, compare, target_row
from fastformer.bench.equivalence import NotEqualError
from fastformer.bench.options import Options, Outcome, Row
from fastformer.bench.processes import Result, alternate, run_worker, spread
from fastformer.errors import InvalidValueError

GOALS = {
    goal.row: goal
    for goal in (
        Goal("P7", "GPT-2, 124 million, 4 x 64 tokens", "x", 1.2, 1.5, ("torch",)),
        Goal("P7 memory", "largest resident memory of P7", "share", 0.7, 0.6, ("torch",)),
        Goal("P16", "tokens of BPE, a text of 100 MB", "x", 0.9, 1, ("tokenizers",)),
        Goal("P16 characters", "characters of it", "x", 1, 2, ("nanogpt",)),
        Goal("P16 bytes", "bytes of it", "s", 5, 2, ()),
        Goal("P16 memory", "memory of 100 MB beside 25 MB", "times", 1.1, 1.02, ("quarter",)),
        Goal("P17 P4", "a step of the loop on text, P4", "times", 1.03, 1.01, ("step",)),
        Goal("P17 P5", "a step of the loop on text, P5", "times", 1.03, 1.01, ("step",)),
        Goal("P18", "nanoGPT's CPU recipe, 2,000 steps", "x", 1.6, 2, ("torch",)),
        Goal("P18 loss", "its validation loss", "nats", 1.88, 1.85, ()),
    )
}
# Where this project's machines have the text; any English text of a megabyte does.
SOURCE = Path(__file__).parents[2] / "shared/data/tinyshakespeare.txt"
BYTES = 100_000_000
VOCAB_SIZE, LEARNED_BYTES = 8192, 2_000_000
# Of a step of P7, how many times the chosen seconds are measured.
_LARGE = 20
_STEPS = {"P4": 200, "P5": 8}
_SEED = 42
_JOBS = "benchmarks.text_jobs:"


def _row(name: str, ours: list[float], theirs: Mapping[str, list[float]], **more: Any) -> Row:
    """Describe a row of this suite."""
    return compare(GOALS[name], ours, theirs, suite="text", **more)


def _large_rows(options: Options, directory: Path) -> list[Row]:
    """Describe P7: the same first losses as the twins in float64, then times and memory."""
    options.report("preparing P7, which takes some gigabytes")
    expected = {"P7": prepare("P7", directory, options.threads)}
    systems = ["numba", *(["torch"] if is_installed("torch") else [])]
    seconds = _LARGE * options.seconds
    found = time_group(["P7"], systems, expected, directory, options, seconds)
    rows = []
    for row, key in (("P7", "median"), ("P7 memory", "peak_bytes")):
        values = {s: [float(one["P7"][key]) for one in results] for s, results in found.items()}
        rows.append(_row(row, values.pop("numba"), values))
    return rows


def _tokens(system: str, tokenizer: str, path: str, options: Options) -> Result:
    """Make a text's tokens in a process and a cache of its own."""
    job = {"task": _JOBS + "time_tokens", "system": system, "tokenizer": tokenizer, "path": path}
    with tempfile.TemporaryDirectory() as cache:
        caches = {"FASTFORMER_CACHE_DIR": cache} if system == "numba" else {}
        return run_worker(system, job, options.threads, environment=caches)


def _token_rows(options: Options, directory: Path) -> list[Row]:
    """Describe P16: the same ids as the peer's, then times and memory."""
    texts = {name: str(directory / f"{name}.txt") for name in ("numba", "quarter")}
    learned = str(directory / "tokenizer.json")
    options.report("writing a text")
    for name, size in (("numba", BYTES), ("quarter", BYTES // 4)):
        job = {"task": _JOBS + "write_text", "source": str(SOURCE), "path": texts[name]}
        run_worker("numba", {**job, "size": size}, options.threads)
    rows = []
    kinds = [("P16 characters", "characters", "nanogpt"), ("P16 bytes", "bytes", "")]
    if is_installed("tokenizers"):
        job = {"task": _JOBS + "learn_tokens", "path": texts["numba"], "out": learned}
        sizes = {"vocab_size": VOCAB_SIZE, "size": LEARNED_BYTES}
        run_worker("numba", {**job, **sizes}, options.threads)
        kinds.insert(0, ("P16", learned, "tokenizers"))
    for row, tokenizer, peer in kinds:

        def job_of(system: str, turn: int, tokenizer: str = tokenizer) -> Result:
            return _tokens(system, tokenizer, texts["numba"], options)

        systems = ["numba", *([peer] if peer else [])]
        found = alternate(systems, options.repeats, job_of, options.report, GOALS[row].title)
        ids = {(one["tokens"], one["checksum"]) for results in found.values() for one in results}
        if len(ids) > 1:
            raise NotEqualError(f"{row}: the systems make other tokens of the same text")
        seconds = {s: [one["seconds"] for one in results] for s, results in found.items()}
        memory = max(one["peak_bytes"] for one in found["numba"])
        rows.append(_row(row, seconds.pop("numba"), seconds, peak_bytes=memory))
    found = alternate(
        ["numba", "quarter"],
        options.repeats,
        lambda system, turn: _tokens("numba", kinds[0][1], texts[system], options),
        options.report,
        GOALS["P16 memory"].title,
    )
    memory = {s: [float(one["peak_bytes"]) for one in results] for s, results in found.items()}
    rows.append(_row("P16 memory", memory.pop("numba"), memory))
    return rows


def _loop_rows(options: Options) -> list[Row]:
    """Describe P17: a step of `fastformer train text` beside the same step on one batch."""
    rows = []
    for workload, steps in _STEPS.items():

        def step(system: str, turn: int, workload: str = workload, steps: int = steps) -> Result:
            task = {"task": _JOBS + "time_loop", "system": system, "workload": workload}
            with tempfile.TemporaryDirectory() as place:
                job = {**task, "path": str(SOURCE), "directory": f"{place}/run", "steps": steps}
                return run_worker("numba", job, options.threads)

        row = f"P17 {workload}"
        systems = ["numba", "step"]
        found = alternate(systems, options.repeats, step, options.report, GOALS[row].title)
        times = {s: [one["median"] for one in results] for s, results in found.items()}
        rows.append(_row(row, times.pop("numba"), times))
    return rows


def _recipe_rows(options: Options) -> list[Row]:
    """Describe P18: the same losses as PyTorch's in the first steps, then the time of all."""

    def train(system: str, turn: int) -> Result:
        task = {"task": _JOBS + "time_recipe", "system": system, "seed": _SEED}
        with tempfile.TemporaryDirectory() as place:
            job = {**task, "path": str(SOURCE), "directory": f"{place}/run"}
            return run_worker(system, job, options.threads)

    systems = ["numba", *(["torch"] if is_installed("torch") else [])]
    found = alternate(systems, options.repeats, train, options.report, GOALS["P18"].title)
    wanted = found["numba"][0]["losses"]
    for system, results in found.items():
        require_equal_losses(system, "nanoGPT's recipe", results[0]["losses"], wanted)
    seconds = {s: [one["seconds"] for one in results] for s, results in found.items()}
    steps = {s: [one["step"] for one in results] for s, results in found.items()}
    losses = spread([one["validation_loss"] for one in found["numba"]])
    goal = GOALS["P18 loss"]
    return [
        _row("P18", seconds.pop("numba"), seconds, steps=steps),
        target_row(goal, losses, None, {}, suite="text"),
    ]


def run(options: Options) -> Outcome:
    """Measure work on text.

    Raises:
        FastformerError: there is no text, or a system computes something else.
    """
    if not SOURCE.is_file():
        raise InvalidValueError(
            f"the suite 'text' needs an English text of a megabyte as {SOURCE}, such as tiny "
            "Shakespeare; put one there"
        )
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        rows = _recipe_rows(options) + _loop_rows(options)
        rows += _token_rows(options, directory) + _large_rows(options, directory)
    order = list(GOALS)
    return Outcome(sorted(rows, key=lambda row: order.index(row["row"])), {})
