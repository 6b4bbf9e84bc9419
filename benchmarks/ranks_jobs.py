"""Steps of processes that train together: what each process of mpiexec does."""

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from fastformer import pack, threads
from fastformer.bench.stepper import prepared_data
from fastformer.bench.workloads import LEARNING_RATE, WORKLOADS
from fastformer.models.config import DecoderConfig
from fastformer.models.decoder import TransformerDecoder
from fastformer.training.loss import CrossEntropyLoss
from fastformer.training.optimizers import AdamW
from fastformer.training.ranks import all_ranks
from fastformer.training.steps import step_gradients

WARM_UP = 2


def time_steps(workload: str, count: int, shards: int, steps: int, in_memory: bool) -> Any:
    """Time steps that all processes share; each process must call it.

    Args:
        workload: its name.    count: threads of each process.    shards: of a batch, a power of 2.
        steps: how many are timed.
        in_memory: whether gradients are exchanged in memory that all see, not by messages.

    Returns:
        Medians, in seconds: step; exchange, of the gradients alone; optimizer. And bytes, of the
        gradients; the loss of the last step.
    """
    threads.configure(count)
    ranks, chosen = all_ranks(), WORKLOADS[workload]
    data, config = prepared_data(chosen, 1), chosen.config()
    assert isinstance(config, DecoderConfig)
    model = TransformerDecoder(config, seed=1)
    flat, loss_fn = model.parameters(), CrossEntropyLoss()
    optimizer = AdamW(flat, LEARNING_RATE)
    batch, targets = pack(data.tokens[0].tolist()), data.targets[0].reshape(-1)
    times: dict[str, list[float]] = {"step": [], "exchange": [], "optimizer": []}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        ranks.gather(None)  # nobody's time is that of waiting for others
        started = time.perf_counter()
        result = work()
        times[name].append(time.perf_counter() - started)
        return result

    def step() -> float:
        model.zero_grad()
        loss, _ = step_gradients(
            model, batch, targets, loss_fn, shards=shards, ranks=ranks, fresh=True
        )
        optimizer.step()
        return loss

    with ranks.sharing_gradients(model) if in_memory else contextlib.nullcontext():
        for _ in range(WARM_UP + steps):
            loss = timed("step", step)
        for _ in range(WARM_UP + steps):
            timed("exchange", lambda: ranks.add_up(flat.gradients, shards, flat.ops.add_gradient))
            flat.zero_gradients()
            timed("optimizer", optimizer.step)
    medians = {name: statistics.median(all_of[WARM_UP:]) for name, all_of in times.items()}
    return {**medians, "bytes": flat.gradients.nbytes, "loss": loss}


if __name__ == "__main__":
    found = time_steps(**json.loads(sys.argv[1]))
    if all_ranks().leads:
        print(json.dumps(found))
