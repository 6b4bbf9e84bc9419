"""Commands that are called in the tests' own process, with what they write."""

import json
from typing import Any

import pytest

from fastformer.cli import main


def object_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """Run a command with --json and return its one object."""
    out = text_of(capsys, *arguments, "--json")
    assert out.count("\n") == 1
    found = json.loads(out)
    assert isinstance(found, dict)
    return found


def text_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command and return what it writes."""
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 0
    return capsys.readouterr().out


def mistake_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that is wrong, and return its message."""
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") <= 2
    return err
