"""Jobs on text, in the process of one system: its tokens, and training on them."""

import os
import time
import zlib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.step_jobs import peak_bytes
from fastformer.bench.workloads import LEARNING_RATE, WORKLOADS
from fastformer.data.text import TextTask
from fastformer.data.text_files import PART, files_digest, parts, text_pieces
from fastformer.training.callbacks import TrainingCallbacks
from fastformer.training.presets import PRESETS

RECIPE = "shakespeare-cpu"
# Steps of the recipe that a peer makes, and of these, how many losses are compared.
PEER_STEPS, COMPARED = 200, 20


def write_text(source: str, path: str, size: int) -> dict[str, Any]:
    """Write a text of about `size` bytes: the paragraphs of `source`, shuffled again and again."""
    random = np.random.default_rng(20240229)
    paragraphs = Path(source).read_text(encoding="utf-8").split("\n\n")
    written = 0
    with open(path, "w", encoding="utf-8", newline="") as file:
        while written < size:
            text = "\n\n".join(paragraphs[i] for i in random.permutation(len(paragraphs)))
            written += file.write(f"{text}\n\n"[: size - written])
    return {"bytes": written}


def learn_tokens(path: str, out: str, vocab_size: int, size: int) -> dict[str, Any]:
    """Learn BPE from the first `size` bytes of a text, and write it to a `tokenizer.json`."""
    from fastformer.data.tokenizers import BPETokenizer

    with open(path, "rb") as file:
        text = file.read(size).decode(errors="ignore")
    Path(out).write_bytes(BPETokenizer.train([text], vocab_size).file())
    return {"vocab_size": vocab_size}


def time_tokens(system: str, tokenizer: str, path: str) -> dict[str, Any]:
    """Turn a text into tokens, as a file that training reads.

    Args:
        system: "numba", "tokenizers" (which encodes the same pieces, and writes nothing) or
            "nanogpt" (which does what the `prepare.py` of its characters does).
        tokenizer: as `fastformer train text` is given it.    path: of the text.

    Returns:
        seconds; tokens, how many; checksum, of their ids as uint16; peak_bytes of the process.
    """
    if system == "numba":
        return _our_tokens(tokenizer, path)
    make = _library_tokens if system == "tokenizers" else _nanogpt_tokens
    return {**make(tokenizer, path), "peak_bytes": peak_bytes()}


def _our_tokens(tokenizer: str, path: str) -> dict[str, Any]:
    from fastformer.training.token_file import open_tokens

    started = time.perf_counter()
    task = TextTask(files=(path,), tokenizer=tokenizer, digest=files_digest([Path(path)]))
    found = open_tokens(task, task.new_tokenizer())
    seconds, peak = time.perf_counter() - started, peak_bytes()
    ids = found.tokens.astype(np.uint16)
    return {
        "seconds": seconds, "tokens": ids.size, "checksum": zlib.crc32(ids.tobytes()),
        "peak_bytes": peak,
    }  # fmt: skip


def _library_tokens(tokenizer: str, path: str) -> dict[str, Any]:
    import tokenizers

    library = tokenizers.Tokenizer.from_file(tokenizer)
    seconds, count, checksum = 0.0, 0, 0
    for text, _ in text_pieces(Path(path)):
        pieces = parts(text, PART)
        started = time.perf_counter()
        found = library.encode_batch_fast(pieces, add_special_tokens=False)
        seconds += time.perf_counter() - started
        for one in found:
            ids = np.array(one.ids, np.uint16)
            count, checksum = count + ids.size, zlib.crc32(ids.tobytes(), checksum)
    return {"seconds": seconds, "tokens": count, "checksum": checksum}


def _nanogpt_tokens(tokenizer: str, path: str) -> dict[str, Any]:
    started = time.perf_counter()
    text = Path(path).read_text(encoding="utf-8")
    numbers = {character: number for number, character in enumerate(sorted(set(text)))}
    ids = np.array([numbers[character] for character in text], dtype=np.uint16)
    ids.tofile(os.devnull)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "tokens": ids.size, "checksum": zlib.crc32(ids.tobytes())}


class _Clock(TrainingCallbacks):
    """When each step ended, its loss, and the last validation loss."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.losses: list[float] = []
        self.validation_loss = float("nan")

    def stepped(self, step: int, loss: float, learning_rate: float, examples: int) -> None:
        self.times.append(time.perf_counter())
        self.losses.append(loss)

    def epoch_finished(self, record: dict[str, Any]) -> None:
        self.validation_loss = record["validation_loss"]


def _train(path: str, directory: str, options: dict[str, Any], seed: int) -> _Clock:
    """Train as `fastformer train text` does, run directory and all."""
    from fastformer.models.config import DecoderConfig
    from fastformer.training.config import TrainingConfig
    from fastformer.training.runs import train_run
    from fastformer.training.text_run import new_text_settings

    def chosen(kind: type[Any]) -> dict[str, Any]:
        return {f.name: options[f.name] for f in fields(kind) if f.name in options}

    clock, task = _Clock(), TextTask(**chosen(TextTask))
    training = TrainingConfig(**chosen(TrainingConfig))
    settings = new_text_settings(
        (Path(path),), task, chosen(DecoderConfig), training=training, seed=seed
    )
    train_run(settings, Path(directory), clock)
    return clock


def time_loop(system: str, workload: str, path: str, directory: str, steps: int) -> dict[str, Any]:
    """Time the steps of an epoch on a text's token file, or the same step on one batch.

    Args:
        system: "numba", or "step" for the bare step.    workload: the model and its batches.
        path: of the text, whose characters are tokens.    directory: of a run; it is made.
        steps: to time, behind as many that warm up.

    Returns:
        The seconds of a step: the median and the mean.
    """
    w = WORKLOADS[workload]
    if system == "numba":
        options = {
            "embed_dim": w.C, "num_heads": w.H, "num_layers": w.L, "ffn_dim": w.F,
            "max_seq_len": w.T, "batch_size": w.B, "learning_rate": LEARNING_RATE,
            "crops": 2 * steps * w.B, "epochs": 1, "validation_share": 0.001,
        }  # fmt: skip
        times = np.diff(_train(path, directory, options, 1).times[steps - 1 :])
    else:
        times = _bare_steps(workload, steps)
    return {"median": float(np.median(times)), "mean": float(times.mean())}


def _bare_steps(workload: str, steps: int) -> Any:
    import fastformer as ff
    from fastformer.bench.stepper import prepared_data
    from fastformer.training.steps import train_step

    chosen = WORKLOADS[workload]
    data = prepared_data(chosen, seed=1)
    config = chosen.config()
    assert isinstance(config, ff.DecoderConfig)
    model = ff.TransformerDecoder(config, seed=1)
    optimizer, loss_fn = ff.Adam(model.parameters(), lr=LEARNING_RATE), ff.CrossEntropyLoss()
    batch = ff.pack(data.tokens[0], np.full(chosen.B, chosen.T))
    targets, times = data.targets[0].ravel(), []
    for _ in range(2 * steps):
        train_step(model, batch, targets, loss_fn, optimizer)
        times.append(time.perf_counter())
    return np.diff(times[steps - 1 :])


def time_recipe(system: str, path: str, directory: str, seed: int) -> dict[str, Any]:
    """Train nanoGPT's recipe for a CPU on a text of characters.

    Args:
        system: "numba" trains all of it as its users do; "torch" makes the first PEER_STEPS steps,
            on the same batches, with the same initial weights.
        path: of the text.    directory: of a run; it is made.    seed: of all of it.

    Returns:
        step: seconds, the median.    seconds: of all steps; with validation and files, ours.
        losses: of the first steps.    validation_loss: the last, of ours.
    """
    options = dict(PRESETS["text"][RECIPE])
    if system == "numba":
        clock = _train(path, directory, options, seed)
        return {
            "step": float(np.median(np.diff(clock.times))),
            "seconds": clock.times[-1] - clock.times[0],
            "losses": clock.losses[:COMPARED], "validation_loss": clock.validation_loss,
        }  # fmt: skip
    step = _peer_recipe(path, options, seed)
    losses, times = [], []
    for number in range(PEER_STEPS):
        losses.append(step(number))
        times.append(time.perf_counter())
    seconds = float(np.median(np.diff(times)))
    total = int(options["epochs"]) * int(options["crops"]) // int(options["batch_size"])
    return {"step": seconds, "seconds": seconds * total, "losses": losses[:COMPARED]}


def _peer_recipe(path: str, options: dict[str, Any], seed: int) -> Callable[[int], float]:
    """Return PyTorch's step of the recipe, which nanoGPT writes so, by its number."""
    import torch
    import torch.nn.functional as F

    import fastformer as ff
    from benchmarks.peers import torch_models
    from fastformer.data.text import Crops
    from fastformer.training.schedules import learning_rate_at

    task = TextTask(files=(path,))
    tokenizer = task.new_tokenizer()
    tokens = tokenizer.encode(Path(path).read_text(encoding="utf-8")).astype(np.uint16)
    first = tokens.size - round(tokens.size * task.validation_share)
    named = {f.name for f in fields(ff.DecoderConfig)}
    chosen = {name: value for name, value in options.items() if name in named}
    config = ff.DecoderConfig(vocab_size=tokenizer.vocab_size, **chosen)
    crops = Crops(tokens[:first], config.max_seq_len, options["crops"])
    model = torch_models.Model(config, config.max_seq_len)
    ours = ff.TransformerDecoder(config, seed=seed, backend="reference")
    torch_models.load(model, ours.state_dict())
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": options["weight_decay"]},
        {"params": others, "weight_decay": 0.0},
    ]
    peak, betas = options["learning_rate"], (0.9, options["beta2"])
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=betas, fused=True)
    count = options["batch_size"]
    total = options["epochs"] * options["crops"] // count

    def step(number: int) -> float:
        batch, targets = crops.batch(seed, number, count)
        x = torch.from_numpy(batch.tokens.reshape(count, -1).copy())
        rate = learning_rate_at(
            number, schedule="cosine", learning_rate=peak, total_steps=total,
            min_learning_rate=options["min_learning_rate"], warmup_steps=options["warmup_steps"],
        )  # fmt: skip
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(x), torch.from_numpy(targets))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options["clip_norm"])
        optimizer.step()
        return float(loss.item())

    return step
