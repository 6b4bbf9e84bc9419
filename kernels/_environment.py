"""Settings of the environment that kernels depend on, and what is wrong with them."""

import importlib
import os
from collections.abc import Sequence

# Numba's names of what runs parallel regions, and the modules of which each needs one.
_LAYERS = {
    "default": (),
    "workqueue": (),
    "forksafe": (),
    "threadsafe": ("tbbpool", "omppool"),
    "safe": ("tbbpool",),
    "tbb": ("tbbpool",),
    "omp": ("omppool",),
}


class SettingError(ValueError):
    """A variable of the environment has a value that is not allowed, or cannot be met here."""


def choice(name: str, allowed: Sequence[str], default: str) -> str:
    """Return the value of a variable, and the default where it is empty or not set."""
    value = os.environ.get(name)
    if not value:
        return default
    if value not in allowed:
        raise SettingError(
            f"the environment variable {name} must be one of {', '.join(allowed)}, got {value!r}; "
            "unset it, or change it"
        )
    return value


def check_compiler() -> None:
    """Raise unless Numba can compile kernels here and run them in parallel.

    Raises:
        ValueError: NUMBA_DISABLE_JIT is set, or NUMBA_THREADING_LAYER is none that is here.
    """
    import numba

    if numba.config.DISABLE_JIT:
        raise SettingError(
            "NUMBA_DISABLE_JIT turns off the compiler, which the backend 'numba' needs: unset it, "
            "or use the backend 'reference'"
        )
    layer = str(numba.config.THREADING_LAYER).lower()
    allowed = ", ".join(_LAYERS)
    if layer not in _LAYERS:
        raise SettingError(
            f"NUMBA_THREADING_LAYER must be one of {allowed}, got {layer!r}; unset it, or change it"
        )
    if _LAYERS[layer] and not any(map(_is_there, _LAYERS[layer])):
        raise SettingError(
            f"NUMBA_THREADING_LAYER={layer} needs a library that is not installed here; unset it, "
            f"or use another of {allowed}"
        )


def _is_there(pool: str) -> bool:
    """Tell whether a pool of threads, and the library that it needs, can be loaded."""
    from numba.np.ufunc import parallel

    try:
        if pool == "tbbpool":
            parallel._check_tbb_version_compatible()
        importlib.import_module(f"numba.np.ufunc.{pool}")
    except ImportError:
        return False
    return True
