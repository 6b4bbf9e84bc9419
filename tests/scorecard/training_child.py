"""A short run in a process of its own, for the rows on determinism; prints what it was, as JSON.

    python -m tests.scorecard.training_child SEED EPOCHS [chunks-of-threads | order-of-hashes]

The model is so large that the kernels have several tasks. With the name of a fault, a kernel cuts
its sum by the number of threads, or the seed depends on the order of a set of words.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numba
import numpy as np
from runs import Recorder, everything

from fastformer.backend import get_backend
from fastformer.data import DigitTask
from fastformer.models.config import TransformerConfig
from fastformer.training.config import TrainingConfig
from fastformer.training.digits_run import RunSettings
from fastformer.training.runs import train_run
from tests.scorecard.files import MEMORY
from tests.scorecard.planted_kernels import sum_of_squares_by_threads

WORDS = {"First", "Second", "Last", "Max", "Min"}


def norm_by_threads(gradients: Any) -> float:
    """Return the norm of the gradient, from as many float32 sums as there are threads."""
    sums = np.zeros(numba.get_num_threads(), np.float32)
    sum_of_squares_by_threads(gradients, sums)
    return float(np.sqrt(np.add.accumulate(sums)[-1]))


def settings(seed: int, epochs: int) -> RunSettings:
    """Return epochs of 50 steps in which every reduction of training counts, the clipping's too."""
    return RunSettings(
        task=DigitTask(examples=2000),
        model=TransformerConfig(vocab_size=20, dropout=0.1),
        training=TrainingConfig(epochs=epochs, clip_norm=0.1, optimizer="adamw"),
        seed=seed,
    )


def main() -> None:
    """Train, and print the digest of all that the run holds, the threads and their layer."""
    seed, epochs, fault = int(sys.argv[1]), int(sys.argv[2]), "".join(sys.argv[3:])
    if fault == "chunks-of-threads":
        get_backend("numba").gradient_norm = norm_by_threads
    elif fault == "order-of-hashes":
        seed += 10 * [*WORDS].index("Max") + [*WORDS].index("Min")
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        result = train_run(settings(seed, epochs), Path(name) / "run", Recorder())
        digest = hashlib.sha256(repr(everything(Path(name) / "run")).encode()).hexdigest()
    layer, threads = numba.threading_layer(), numba.get_num_threads()
    found = {"digest": digest, "steps": result["steps"], "layer": layer, "threads": threads}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
