"""No feature of llmlearn is quietly missing: each has a proof, or a reason why not."""

import functools
import importlib
import re
from pathlib import Path

import pytest
from features import FEATURES, OUT_OF_SCOPE

from fastformer.cli import app

ROOT = Path(__file__).parent.parent
INVENTORY = ROOT.parent / "shared/llmlearn.md"
LAST = 117


@functools.cache
def options_of(command: str) -> frozenset[str]:
    """Return the names of the options of a command, and of its own commands; or raise."""
    found = app[command]
    parts = [found, *(found[name] for name in found if not name.startswith("-"))]
    return frozenset(
        name
        for part in parts
        for argument in part.assemble_argument_collection()
        for name in argument.names
    )


def fault(proof: str) -> str | None:
    """Say what is wrong with a proof, or None where it holds."""
    if proof.startswith("$ "):
        command, *options = proof[2:].split()
        try:
            missing = set(options) - options_of(command)
        except (KeyError, ImportError, AttributeError) as error:
            return f"no command {command}: {error!r}"
        return f"{command} has no option {', '.join(sorted(missing))}" if missing else None
    if "::" in proof:
        file, name = proof.split("::")
        path = ROOT / file
        found = path.is_file() and re.search(rf"^def {re.escape(name)}", path.read_text(), re.M)
        return None if found else f"no such test: {proof}"
    if ": " in proof:
        file, line = proof.split(": ", 1)
        path = ROOT / file
        found = path.is_file() and any(t.startswith(line) for t in path.read_text().splitlines())
        return None if found else f"no such line: {proof}"
    module, _, names = proof.partition(":")
    try:
        functools.reduce(getattr, names.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        return f"no such name: {error!r}"
    return None


def unaccounted(*tables: dict[int, object]) -> set[int]:
    """Return the numbers that are in none of the tables, in more than one, or of no feature."""
    numbers = [number for table in tables for number in table]
    features = range(1, LAST + 1)
    return {n for n in {*numbers, *features} if numbers.count(n) != 1 or n not in features}


@pytest.mark.smoke
def test_every_feature_is_accounted_for_once() -> None:
    assert unaccounted(dict(FEATURES), dict(OUT_OF_SCOPE)) == set()
    assert all(FEATURES.values()) and all(OUT_OF_SCOPE.values())


@pytest.mark.parametrize("number", FEATURES)
def test_a_feature_is_there(number: int) -> None:
    assert [problem for proof in FEATURES[number] if (problem := fault(proof))] == []


def test_a_feature_that_is_left_out_or_claimed_twice_is_noticed() -> None:
    without = {n: proofs for n, proofs in FEATURES.items() if n != 62}
    assert unaccounted(without, dict(OUT_OF_SCOPE)) == {62}
    assert unaccounted(dict(FEATURES), {**OUT_OF_SCOPE, 62: "x", 118: "y"}) == {*(62, 118)}


@pytest.mark.parametrize(
    "proof",
    [
        "$ plat",
        "$ plot --colour",
        "$ train --tour --rotary",
        "fastformer.no_such_module:plot",
        "fastformer.analysis.plots:no_such_name",
        "fastformer.batch:PackedBatch.no_such_name",
        "tests/test_features.py::test_of_something_else",
        "tests/test_nothing.py::test_it",
        "README.md: ## No such heading",
        "NOTHING.md: #",
    ],
)
def test_a_proof_of_what_is_not_there_is_noticed(proof: str) -> None:
    assert fault(proof)


@pytest.mark.skipif(not INVENTORY.is_file(), reason=f"{INVENTORY} is not beside this repository")
def test_the_inventory_has_as_many_features() -> None:
    table = INVENTORY.read_text(encoding="utf-8").split("\n## 8. ")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| ", table, re.MULTILINE)
    assert sorted(map(int, rows)) == list(range(1, LAST + 1))
