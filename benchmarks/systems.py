"""What is measured beside each other: fastformer's own systems, and its peers."""

import importlib.util
from collections.abc import Sequence

from fastformer import checks
from fastformer.bench import environment

PEERS = {"torch": "torch eager", "compile": "torch.compile", "jax": "JAX jit"}
SYSTEMS = environment.SYSTEMS | PEERS
PEER_PACKAGES = ("torch", "jax", "jaxlib", "transformers", "tokenizers")
_PACKAGE_OF = {
    "torch": "torch", "compile": "torch", "jax": "jax", "transformers": "transformers",
    "tokenizers": "tokenizers",
}  # fmt: skip
LABELS = SYSTEMS | {
    "numpy": "NumPy (BLAS)",
    "llmlearn": "llmlearn's cost",
    "transformers": "transformers",
    "tokenizers": "tokenizers",
    "nanogpt": "nanoGPT's prepare.py",
    "step": "fastformer's bare step",
    "quarter": "a quarter of the text",
    "yours": environment.LABELS["yours"],
    # Where the number of threads is what is measured.
    "numba-all": "fastformer, all threads",
}


def is_installed(system: str) -> bool:
    """Tell whether what a system needs can be imported."""
    package = _PACKAGE_OF.get(system)
    return package is None or importlib.util.find_spec(package) is not None


def choose_systems(
    wanted: Sequence[str] | None, defaults: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Return the systems to measure, and a line for each that is left out.

    Args:
        wanted: names that the user gave, or None.    defaults: what to measure otherwise.

    Raises:
        ValueError: an unknown name, or one that the user asked for and that is not installed.
    """
    missing = []
    for system in wanted or ():
        checks.choice("each of systems", system, tuple(SYSTEMS))
        if not is_installed(system):
            checks.fail(
                f"{SYSTEMS[system]} cannot be measured: {_PACKAGE_OF[system]} is not installed; "
                "install it with the extra `compare`, or leave it out of --systems"
            )
    for system in defaults if wanted is None else ():
        if not is_installed(system):
            missing.append(f"{SYSTEMS[system]} is left out: {_PACKAGE_OF[system]} is not installed")
    return [s for s in (wanted or defaults) if is_installed(s)], missing
