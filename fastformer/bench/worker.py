"""One job of a benchmark, in a process of its own: `python -m fastformer.bench.worker`.

A job is a JSON object on standard input: `task`, which is module:function, and its arguments. The
last line of standard output is the result, a JSON object; `{"error": ...}` where a kernel is not
equal.
"""

import importlib
import json
import sys
from typing import Any

from fastformer.errors import FastformerError


def main() -> int:
    """Do the job; return the exit code."""
    job: dict[str, Any] = json.loads(sys.stdin.read())
    # Imported when asked for: a process imports what its own system needs, and nothing else.
    module, _, function = job.pop("task").partition(":")
    try:
        result = getattr(importlib.import_module(module), function)(**job)
    except FastformerError as error:
        result = {"error": str(error)}
    sys.stdout.write(f"\n{json.dumps(result)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
