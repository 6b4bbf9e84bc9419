"""Compilation: shared options, the cache's directory, no stale kernels, the checked build."""

import importlib.util
import math
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from program import HANG, ROOT
from twins import CHECKED, IS_VARIANT, VARIANT, assert_passes, called, start_run

from fastformer.kernels import _compile, _target
from fastformer.kernels._rows import row_tasks

KERNELS = ROOT / "kernels"

HELPER = """
from ._compile import kernel

@kernel
def add(x):
    return x + 1
"""
PROBE = """
from ._compile import CACHE_DIRECTORY, kernel
from ._helper import add

@kernel
def probe(x):
    return add(x)

if __name__ == "__main__":
    print(int(probe(0.0)), sum(probe.stats.cache_hits.values()), CACHE_DIRECTORY)
"""


def run_python(*arguments, **environment):
    done = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        **{"capture_output": True, "text": True, "timeout": HANG},
    )
    return done.returncode, done.stdout, done.stderr


def plant(directory, files):
    """Make a package of the real _compile.py and of other files."""
    package = directory / "planted"
    package.mkdir()
    for name in ("_cache.py", "_compile.py", "_environment.py", "_target.py"):
        shutil.copy(KERNELS / name, package)
    for name, text in files.items():
        (package / name).write_text(text)
    return package


def run_probe(package, cache):
    """Return what the probe computes, how often it came from the cache, and the cache's place."""
    # Without bytecode files: they tell an edit by whole seconds and the size, and may miss it.
    paths = {
        "PYTHONPATH": str(package.parent),
        "FASTFORMER_CACHE_DIR": str(cache),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    code, output, errors = run_python("-m", "planted.probe", **paths)
    assert code == 0, errors
    value, hits, place = output.split()
    return int(value), int(hits), Path(place)


def test_edited_helper_is_compiled_again(tmp_path):
    """Numba's own cache looks at the file of the kernel only, and would run the old helper."""
    package = plant(tmp_path, {"_helper.py": HELPER, "probe.py": PROBE})
    cache = tmp_path / "cache"
    value, hits, first = run_probe(package, cache)
    assert (value, hits) == (1, 0)
    assert first.parent == cache
    assert list(first.rglob("*.nbc"))
    assert run_probe(package, cache) == (1, 1, first)
    (package / "_helper.py").write_text(HELPER.replace("x + 1", "x + 2"))
    value, hits, second = run_probe(package, cache)
    assert (value, hits) == (2, 0)
    assert second != first


def test_without_the_digest_the_old_helper_runs(tmp_path):
    """The fault that the test above looks for, planted."""
    package = plant(tmp_path, {"_helper.py": HELPER, "probe.py": PROBE})
    source = (package / "_compile.py").read_text()
    constant = source.replace("{_digest()}", "constant")
    assert constant != source
    (package / "_compile.py").write_text(constant)
    run_probe(package, tmp_path / "cache")
    (package / "_helper.py").write_text(HELPER.replace("x + 1", "x + 2"))
    assert run_probe(package, tmp_path / "cache")[:2] == (1, 1)


@pytest.fixture
def copied_kernels(tmp_path, monkeypatch):
    """Let the digest look at a copy of the kernels."""
    copy = tmp_path / "kernels"
    shutil.copytree(KERNELS, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(_compile, "__file__", str(copy / "_compile.py"))
    return copy


@pytest.mark.smoke
def test_digest_changes_with_every_source(copied_kernels):
    digests = {_compile._digest()}
    sources = sorted(copied_kernels.glob("*.py"))
    assert len(sources) >= 15
    for changes, source in enumerate(sources, 1):
        source.write_text(source.read_text() + "\n")
        digests.add(_compile._digest())
        assert len(digests) == 1 + changes, source.name
    (copied_kernels / "new.py").touch()
    digests.add(_compile._digest())
    (copied_kernels / "new.py").rename(copied_kernels / "renamed.py")
    digests.add(_compile._digest())
    assert len(digests) == len(sources) + 3


def test_digest_changes_with_all_that_decides_code(monkeypatch):
    digests = {_compile._digest()}
    changes = [
        (_compile, "BUILD"),
        *((module, "__version__") for module in (_compile.numba, _compile.llvmlite, np)),
        *((_target, name) for name in ("TRIPLE", "CPU_NAME", "CPU_FEATURES", "VECTOR_BITS")),
        *((_compile.numba.config, name) for name in _compile.CODE_SETTINGS),
    ]
    for count, (module, name) in enumerate(changes, 1):
        monkeypatch.setattr(module, name, "another")
        digests.add(_compile._digest())
        assert len(digests) == 1 + count, name


PRINT_TARGET = """
import sys
from llvmlite import binding
if sys.argv[1:]:  # a host without AVX
    binding.get_host_cpu_name = lambda: "nehalem"
    features = binding.get_host_cpu_features()
    binding.get_host_cpu_features = lambda: type(features)({"sse2": True, "avx": False})
from fastformer.kernels import _compile, _llvm, _target
print(_target.VECTOR_BITS, _llvm.VECTOR_REGISTERS, _llvm.HAS_SCALEF, _compile.CACHE_DIRECTORY.name)
"""


@pytest.mark.skipif(not _target.is_x86(), reason="names x86 processors")
def test_width_is_that_of_what_numba_compiles_for(tmp_path):
    """Machines that share a cache, and with it a processor's name, must share a width as well."""

    def target(name, *host, features=""):
        settings = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features}
        code, output, errors = run_python(
            "-c", PRINT_TARGET, *host, FASTFORMER_CACHE_DIR=str(tmp_path), **settings
        )
        assert code == 0, errors
        bits, registers, has_scalef, place = output.split()
        return int(bits), int(registers), has_scalef == "True", place

    generic = target("generic")
    assert generic[:3] == (128, 16, False)
    assert target("generic", "other host") == generic
    assert target("generic", features="+avx2,+fma")[:3] == (256, 16, False)
    named = target("skylake-avx512")
    assert named[:3] == (512, 32, True) and named[3] != generic[3]


@pytest.fixture
def cache_root(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTFORMER_CACHE_DIR", str(tmp_path / "chosen"))
    return tmp_path / "chosen"


@pytest.mark.smoke
def test_cache_directory_is_private_and_where_it_was_asked_for(cache_root):
    directory = _compile._cache_directory()
    assert directory.parent == cache_root
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert _compile._cache_directory() == directory


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_directory_that_others_can_write_is_refused(cache_root, mode):
    _compile._cache_directory().chmod(mode)
    assert _compile._cache_directory() is None


def test_directory_of_another_user_is_refused(cache_root, monkeypatch):
    _compile._cache_directory()
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    assert _compile._cache_directory() is None


def test_second_choice_is_in_the_temporary_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("FASTFORMER_CACHE_DIR", raising=False)
    user_cache, temporary = tmp_path / "user", tmp_path / "tmp"
    monkeypatch.setattr(_compile.platformdirs, "user_cache_dir", lambda *a, **k: str(user_cache))
    monkeypatch.setattr(_compile.tempfile, "gettempdir", lambda: str(temporary))
    first = _compile._cache_directory()
    assert first.parent == user_cache
    first.chmod(0o777)
    second = _compile._cache_directory()
    assert second.is_relative_to(temporary)
    assert stat.S_IMODE(second.stat().st_mode) == 0o700


def test_kernels_run_where_nothing_can_be_cached(tmp_path):
    package = plant(tmp_path, {"_helper.py": HELPER, "probe.py": PROBE})
    (tmp_path / "file").touch()
    paths = {"PYTHONPATH": str(tmp_path), "FASTFORMER_CACHE_DIR": str(tmp_path / "file")}
    code, output, errors = run_python("-m", "planted.probe", **paths)
    assert (code, output.split()) == (0, ["1", "0", "None"]), errors
    assert not list(package.rglob("*.nb?"))


def test_unknown_build_is_an_error(monkeypatch):
    monkeypatch.setenv("FASTFORMER_BUILD", "fast")
    spec = importlib.util.spec_from_file_location(
        "fastformer.kernels.compile_again", KERNELS / "_compile.py"
    )
    with pytest.raises(ValueError, match=re.escape("must be one of production, checked")):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


@_compile.kernel
def _is_nan(x):
    return math.isnan(x)


@_compile.kernel
def _divide(x, y):
    return x / y


@pytest.mark.smoke
def test_serial_kernels_are_called_by_kernels_only():
    for arguments in ((100, 100), (1.5, 2)):
        with pytest.raises(TypeError, match="row_tasks is called by other kernels only"):
            row_tasks(*arguments)
        assert called(row_tasks)(*arguments) >= 1


def test_kernel_that_counts_no_references_returns_no_array():
    def same(x):
        return x

    def both(x):
        return x.size, x

    def first(x):
        return x[0]

    x = np.ones(3)
    for options in ({"inline": True}, {"allocates": False}):
        for function in (same, both):
            message = f"{function.__name__} counts no references, and returns"
            with pytest.raises(TypeError, match=message):
                _compile.kernel(function, **options)(x)
    assert _compile.kernel(first, inline=True)(x) == 1


def test_shared_options():
    assert _is_nan(math.nan)
    assert not _is_nan(1.0)
    assert _divide(1.0, 0.0) == math.inf
    assert np.isnan(_divide(0.0, 0.0))
    options = _divide.targetoptions
    assert options["fastmath"] == {"reassoc", "contract", "arcp", "nsz", "afn"}
    assert options["error_model"] == "numpy"


PLANTED_ACCESS = """
import sys
import numpy as np
from numba import prange
from fastformer.kernels._compile import kernel
from fastformer.kernels._simd import (
    array_at, lanes, load, load_first, load_padded, store, store_first, stream_first
)

@kernel
def copy(x, out, shift):
    store(out, load(x, shift), 0)

@kernel
def copy_first(x, out, n):
    store_first(out, n, load_first(x, n, 0), 0)

@kernel
def stream(x, out, n):
    stream_first(out, n, load(x, 0), 0)

@kernel
def copy_padded(x, out, n):
    store(out, load_padded(x, n, 1.0, 0), 0)

@kernel
def copy_view(x, out, rows):
    out[0] = array_at(x, 0, rows, 1)[0, 0]

@kernel(parallel=True)
def copy_parallel(x, out, shift):
    for task in prange(1):
        store(out, load(x, shift), task)

@kernel
def element(x, i):
    return x[i]

@kernel(once=True)
def element_of_library(x, i):
    return x[i]

@kernel
def element_by_symbol(x, i):
    return element_of_library(x, i)

for dtype in (np.float32, np.float64):
    x = np.ones(64, dtype)[: lanes(np.empty(0, dtype))]
    short = x[:-1] if x.size > 1 else x[:0]
    calls = [
        (copy, (x, x.copy(), 0), (x, x.copy(), 1)),
        (copy, (x, x.copy(), 0), (x, x.copy(), -1)),
        (copy, (x, x.copy(), 0), (x, short.copy(), 0)),
        (copy_first, (short, x.copy(), short.size), (short, x.copy(), x.size)),
        (copy_first, (x, short.copy(), short.size), (x, short.copy(), x.size)),
        (stream, (x, short.copy(), short.size), (x, short.copy(), x.size)),
        (copy_padded, (short, x.copy(), short.size), (short, x.copy(), x.size)),
        (copy_view, (x, x.copy(), x.size), (x, x.copy(), x.size + 1)),
        (copy_parallel, (x, x.copy(), 0), (x, x.copy(), 1)),
        (element, (x, x.size - 1), (x, x.size)),
        (element_by_symbol, (x, x.size - 1), (x, x.size)),
    ]
    for function, inside, outside in calls:
        function(*inside)
        try:
            function(*outside)
        except IndexError:
            print("caught")
        else:
            sys.exit(f"{function} missed an access outside its array")
"""


def test_checked_build_catches_accesses_that_are_off_by_one(tmp_path):
    program = tmp_path / "planted.py"
    program.write_text(PLANTED_ACCESS)
    where = {"FASTFORMER_BUILD": "checked", "FASTFORMER_CACHE_DIR": str(tmp_path)}
    code, output, errors = run_python(str(program), **where)
    assert code == 0, errors
    assert output.split() == ["caught"] * 22


@pytest.mark.variants
@pytest.mark.skipif(IS_VARIANT, reason="is itself such a run")
def test_kernels_run_clean_in_the_checked_build():
    """Every shape at every edge, with bounds checks, and with guard pages behind all arrays."""
    tests = [
        "test_matmul.py::test_integers_are_exact_at_all_edges",
        "test_matmul.py::test_integers_are_exact_over_several_tasks",
        "test_matmul.py::test_groups_and_epilogues_equal_twin",
        "test_bfloat16.py",
        "test_matmul_bfloat16.py::test_edges_equal_twin",
        "test_matmul_bfloat16.py::test_blocks_of_rows_and_panels_equal_twin",
        "test_layernorm.py::test_equals_twin",
        "test_layernorm.py::test_several_tasks_equal_twin",
        "test_attention.py::test_lengths_equal_twin",
        "test_attention.py::test_head_sizes_equal_twin",
    ]
    assert_passes(start_run(*tests, **{VARIANT: "1"}, **CHECKED))
