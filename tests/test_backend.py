"""Backends: two tables with the same names and signatures."""

import importlib
import inspect

import pytest

from fastformer import backend
from fastformer.backend import OPS, get_backend
from fastformer.errors import InvalidTypeError, InvalidValueError

ALL_OPS = [(stem, op) for stem, ops in OPS.items() for op in ops]


def parameters_of(function):
    """Return the names of a kernel's or a twin's parameters."""
    return list(inspect.signature(getattr(function, "py_func", function)).parameters)


def test_both_have_the_same_names_and_signatures():
    compiled, reference = get_backend("numba"), get_backend("reference")
    assert (
        vars(compiled).keys()
        == vars(reference).keys()
        == {op for _, op in ALL_OPS} | {"name", "run_program"}
    )
    assert (compiled.name, reference.name) == ("numba", "reference")
    for _, op in ALL_OPS:
        assert parameters_of(getattr(compiled, op)) == parameters_of(getattr(reference, op)), op


@pytest.mark.parametrize(("stem", "op"), ALL_OPS)
def test_each_is_what_its_backend_says(stem, op):
    module = importlib.import_module(f"fastformer.kernels.{stem}")
    reference = getattr(get_backend("reference"), op)
    assert getattr(get_backend("numba"), op) is getattr(module, op)
    assert reference is getattr(module, f"{op}_reference")
    assert inspect.isfunction(reference), "a twin is plain NumPy"


def test_no_op_is_left_out():
    """Every function of a kernel file that has a twin is an op."""
    for stem, ops in OPS.items():
        names = vars(importlib.import_module(f"fastformer.kernels.{stem}"))
        own = {
            name.removesuffix("_reference")
            for name, value in names.items()
            if name.endswith("_reference")
            and not name.startswith("_")
            and value.__module__ == f"fastformer.kernels.{stem}"
        }
        assert own == set(ops)


def test_a_backend_is_made_once():
    assert get_backend("numba") is get_backend("numba")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("numpy", InvalidValueError, r"backend must be one of 'numba', 'reference', got 'numpy'"),
        ("nubma", InvalidValueError, r"got 'nubma'; did you mean 'numba'\?"),
        ("", InvalidValueError, r"got ''"),
        (None, InvalidTypeError, r"backend must be one of 'numba', 'reference', got None"),
        (1, InvalidTypeError, r"got 1"),
        (["numba"], InvalidTypeError, r"backend must be one of .*, got \['numba'\]"),
    ],
)
def test_another_name_is_refused(name, error, message):
    with pytest.raises(error, match=message):
        backend.get_backend(name)
