"""One job of a benchmark, in a process of its own: `python -m fastformer.bench.worker`.

A job is a JSON object on standard input: `kind`, `system`, and what the kind needs. The last line
of standard output is the result, a JSON object; `{"error": ...}` where a kernel is not equal.
"""

import importlib
import json
import sys
from typing import Any

from fastformer import threads
from fastformer.errors import FastformerError

# Imported when asked for: a process imports what its own system needs, and nothing else.
_KINDS = {
    "check": "fastformer.bench.kernel_jobs:check_kernels",
    "kernels": "fastformer.bench.kernel_jobs:time_kernels",
    "check products": "fastformer.bench.kernel_jobs:check_products",
    "products": "fastformer.bench.kernel_jobs:time_products",
    "machine": "fastformer.bench.kernel_jobs:measure_machine",
    "prepare": "fastformer.bench.step_jobs:prepare",
    "steps": "fastformer.bench.step_jobs:time_steps",
    "start": "fastformer.bench.step_jobs:time_start",
    "learn": "fastformer.bench.learn_jobs:time_to_learn",
    "profile": "fastformer.bench.profile:profile_step",
}


def main() -> int:
    """Do the job; return the exit code."""
    job: dict[str, Any] = json.loads(sys.stdin.read())
    if job["system"] == "numba-all":
        threads.configure(threads.configure())
    module, _, function = _KINDS[job.pop("kind")].partition(":")
    try:
        result = getattr(importlib.import_module(module), function)(**job)
    except FastformerError as error:
        result = {"error": str(error)}
    sys.stdout.write(f"\n{json.dumps(result)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
