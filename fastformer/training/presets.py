"""Named settings: what the decoder's tasks are trained with, and presets, which are sizes alone.

A preset gives options; those that are given beside it go before its own.
"""

from collections.abc import Sequence
from typing import Final

from fastformer import checks
from fastformer.errors import InvalidValueError

Options = dict[str, int | float | str | bool]

_STEPS_PER_EPOCH: Final[int] = 500
_BATCH_SIZE: Final[int] = 64


def _decoder(steps: int, layers: int, learning_rate: float, width: int = 64) -> Options:
    """Return the options of a decoder on a stream: GPT-2's choices, AdamW, half a cosine."""
    return {
        "examples": _STEPS_PER_EPOCH * _BATCH_SIZE,
        "embed_dim": width,
        "ffn_dim": 4 * width,
        "num_layers": layers,
        "max_seq_len": 48,
        "norm": "pre",
        "activation": "gelu",
        "positions": "learned",
        "epochs": steps // _STEPS_PER_EPOCH,
        "batch_size": _BATCH_SIZE,
        "optimizer": "adamw",
        "learning_rate": learning_rate,
        "beta2": 0.99,
        "schedule": "cosine",
        "warmup_steps": 200,
        "clip_norm": 1.0,
    }


# What recipes for text have in common, from nanoGPT.
_ADAMW: Final[Options] = {
    "optimizer": "adamw",
    "schedule": "cosine",
    "weight_decay": 0.1,
    "beta2": 0.99,
    "clip_norm": 1.0,
}

RECIPES: Final[dict[str, Options]] = {
    "double-digits": _decoder(3000, 3, 1.5e-3, width=96),
    "three-digits": _decoder(4000, 3, 1.5e-3, width=96),
    "long-lists": _decoder(3000, 2, 2e-3),
    "nested": _decoder(6000, 3, 1e-3),
    "arithmetic": _decoder(4000, 2, 1e-3),
    "addition": _decoder(2500, 2, 2e-3),
    "answers": {
        "max_seq_len": 256,
        "num_layers": 3,
        "embed_dim": 96,
        "ffn_dim": 384,
        "epochs": 30,
        "optimizer": "adamw",
        "learning_rate": 1.5e-3,
        "beta2": 0.99,
        "schedule": "cosine",
        "warmup_steps": 100,
        "clip_norm": 1.0,
    },
    # Texts of any length, and few of them: all tokens are read out, and batches are small. It is
    # what fastformer.sklearn has: 600 sentences of four kinds, of which 400 unseen ones are right.
    "classify": {
        "max_seq_len": 256,
        "norm": "pre",
        "num_layers": 1,
        "ffn_dim": 128,
        "pooling": "mean",
        "dropout": 0.2,
        "epochs": 20,
        "batch_size": 16,
        "optimizer": "adamw",
        "learning_rate": 3e-3,
        "patience": 10,
    },
}
"""What each task but digits and text is trained with, by the names of the settings.

Two layers of width 64 are enough but for nested expressions, which need a third, and for numbers
of several digits, where those that begin alike are hard to tell apart. For two digits, a third
layer and width 96 were worth 99.89 -> 99.98 % (width 96 alone: 99.88 %); for three digits and
three layers, width 96 was worth 97.96 % after 5,000 steps -> 99.59 to 99.93 % after 4,000 (seed 42;
rounding decides). Seeds differ: after 6,000 steps, seeds 2 and 1 had 99.88 and 98.03 %.

Tried on three digits, width 64, seed 42, 3,000 steps, for 97.84 %, and not taken: hints of each
digit of the answer so far 97.05 %, half of the draws with fewer digits 93.12 %, learning rate
3e-3 93.62 %, four layers at 1e-3 97.54 %, weight decay 0.1 with beta2 0.98 98.12 %, half the
batch and twice the steps 96.77 %. Two heads had 99.63 %, but 97.71 and 81.08 % with other seeds.
Batches of 128 had 99.04 % after 2,500 steps of 2e-3, at 1.8 times the time. With width 96 and 4,000
steps, rotary positions had 98.84, 98.81 and 99.76 % with seeds 42, 2 and 1, SwiGLU 98.79 % with 1.
"""

PRESETS: Final[dict[str, dict[str, Options]]] = {
    "digits": {
        "small": {"examples": 1_000},
        "medium": {"examples": 10_000},
        "large": {"examples": 100_000},
        "wide": {"embed_dim": 128, "num_heads": 8, "num_layers": 4, "ffn_dim": 512},
    },
    "text": {
        # nanoGPT's recipe of this name: 2,000 steps of 12 crops of 64 characters.
        "shakespeare-cpu": {
            "crops": 3000,
            "embed_dim": 128,
            "ffn_dim": 512,
            "num_layers": 4,
            "num_heads": 4,
            "max_seq_len": 64,
            "ffn_bias": False,
            "norm_bias": False,
            "epochs": 8,
            "batch_size": 12,
            "learning_rate": 1e-3,
            "min_learning_rate": 1e-4,
            "warmup_steps": 100,
            **_ADAMW,
        },
        # makemore's task: a file with a name on each line, 4,510 steps of 64 names.
        "names": {
            "documents": "lines",
            "embed_dim": 64,
            "ffn_dim": 256,
            "num_layers": 4,
            "num_heads": 4,
            "max_seq_len": 16,
            "epochs": 10,
            "batch_size": 64,
            "learning_rate": 3e-3,
            "warmup_steps": 100,
            **_ADAMW,
        },
        # Llama's choices at 3.2 million parameters: 500 steps of 16 crops of 128 characters.
        "llama-small": {
            "crops": 2000,
            "embed_dim": 256,
            "ffn_dim": 688,
            "num_layers": 4,
            "num_heads": 8,
            "max_seq_len": 128,
            "activation": "swiglu",
            "norm_type": "rmsnorm",
            "positions": "rotary",
            "layernorm_epsilon": 1e-6,
            "ffn_bias": False,
            "norm_bias": False,
            "epochs": 4,
            "batch_size": 16,
            "learning_rate": 2e-3,
            "warmup_steps": 50,
            **_ADAMW,
        },
        # GPT-2's sizes, 124 million parameters, for a text of many megabytes: a batch of 64 crops.
        "gpt2-small": {
            "tokenizer": "bpe",
            "vocab_size": 50257,
            "crops": 6400,
            "embed_dim": 768,
            "ffn_dim": 3072,
            "num_layers": 12,
            "num_heads": 12,
            "max_seq_len": 1024,
            "qkv_bias": True,
            "attention_output_bias": True,
            "epochs": 10,
            "batch_size": 4,
            "accumulation_steps": 16,
            "learning_rate": 6e-4,
            "warmup_steps": 100,
            **_ADAMW,
            "beta2": 0.95,
        },
    },
}
"""The presets of each task that has some, by the names of the settings.

Of text, on two cores that other programs used as well: `shakespeare-cpu` has a validation loss of
1.81 on tiny Shakespeare, `names` one of 1.972 on the 32,033 names of makemore after 72 s (0.1 of
dropout and two epochs more: 1.978), `llama-small` 1.699 on tiny Shakespeare after 437 s.
`gpt2-small` is GPT-2's sizes alone: a step of one crop of 1,024 tokens took some 7 s, so that its
1,000 steps of 64 take days.
"""


def with_preset(words: Sequence[str]) -> list[str]:
    """Return the words of a command line with the options of its preset, if it names one.

    Args:
        words: what follows `fastformer`: train, a task, and so on.

    Raises:
        ValueError: the task has no such preset; the message names those that it has.
    """
    name = None
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "--preset":
            name = following
        elif word.startswith("--preset="):
            name = word.removeprefix("--preset=")
    if name is None or len(words) < 2 or words[1] not in PRESETS or "--help" in words:
        return list(words)
    if name in RECIPES:
        raise InvalidValueError(f"{name} is a task, not a preset: fastformer train {name}")
    checks.choice(f"preset of {words[1]}", name, tuple(PRESETS[words[1]]))
    given = {word.partition("=")[0].removeprefix("--").removeprefix("no-") for word in words}
    options = {key.replace("_", "-"): value for key, value in PRESETS[words[1]][name].items()}
    added = [f"--{key}={value}".lower() for key, value in options.items() if key not in given]
    return [*words, *added]
