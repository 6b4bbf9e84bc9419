"""The examples of the README and of the other pages, executed as they are written."""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from models import use_one_thread
from program import HANG, ROOT

from fastformer.cli import main

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
PROMPT = "$ "


@dataclass(frozen=True)
class Example:
    """A piece of the README that is executed: the arguments of a process, and where it is."""

    arguments: tuple[str, ...]
    line: int


def read_examples(text: str) -> list[Example]:
    """Find each python block and each command of the console blocks, in their order."""
    examples = []
    for block in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        kind, body = block.groups()
        line = text.count("\n", 0, block.start(2)) + 1
        if kind == "python":
            examples.append(Example((sys.executable, "-W", "error", "-c", body), line))
        elif kind == "console":
            examples += [
                Example(("bash", "-c", command.removeprefix(PROMPT)), line + offset)
                for offset, command in enumerate(body.splitlines())
                if command.startswith(PROMPT)
            ]
    return examples


def run_here(words: list[str], directory: Path) -> tuple[int, str]:
    """Run the command in this process, which has loaded all that it needs."""
    output = io.StringIO()
    with (
        contextlib.chdir(directory),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        code = main(words)
    return code, output.getvalue()


def run_process(example: Example, directory: Path) -> tuple[int, str]:
    """Run a block, or a command by a shell, in a process of its own."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "NUMBA_NUM_THREADS": "1",  # enough for small models, and quick where CPUs have other work
    }
    done = subprocess.run(
        example.arguments,
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    return done.returncode, f"{done.stdout}\n{done.stderr}"


def run_examples(text: str, directory: Path) -> int:
    """Execute the examples one after the other in a directory; return how many there were."""
    examples = read_examples(text)
    for example in examples:
        words = shlex.split(example.arguments[-1])
        if words[0] == "fastformer" and not {"|", ">", "<", "&"} & set(example.arguments[-1]):
            code, output = run_here(words[1:], directory)
        else:
            code, output = run_process(example, directory)
        assert code == 0, (
            f"line {example.line}: exit code {code}\n{example.arguments[-1]}\n{output}"
        )
    return len(examples)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_a_page_run(page: Path, tmp_path: Path) -> None:
    use_one_thread()
    text = page.read_text(encoding="utf-8")
    assert run_examples(text, tmp_path) >= text.count("\n```python\n") + text.count("\n$ ")


@pytest.mark.smoke
def test_pages_have_examples_and_are_linked() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(read_examples(text)) > 10 and text.count("\n") <= 200
    for page in PAGES[1:]:
        assert f"](docs/{page.name})" in text
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links {target}"


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        ("```python\nprint(1)\nraise SystemExit(3)\n```", "line 3: exit code 3"),
        ("```python\nimport warnings\nwarnings.warn('old')\n```", "line 3: exit code 1"),
        ("```console\n$ echo fine\nfine\n$ exit 4\n```", "line 5: exit code 4"),
        ("```console\n$ no-such-command runs/small\n```", "line 3: exit code 127"),
        ("```console\n$ fastformer no-such-command\n```", "line 3: exit code 2"),
        ("```console\n$ echo 1 | fastformer predict runs/none\n```", "line 3: exit code 2"),
    ],
)
def test_a_broken_example_is_noticed(tmp_path: Path, block: str, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        run_examples(f"# A readme\n{block}\n", tmp_path)


@pytest.mark.smoke
def test_examples_share_a_directory_and_other_blocks_are_left_alone(tmp_path: Path) -> None:
    text = "```sh\nexit 1\n```\n```console\n$ echo 3 > n\n```\n```python\nopen('n').close()\n```\n"
    assert run_examples(text, tmp_path) == 2
    assert run_examples("no examples here\n", tmp_path) == 0


@pytest.mark.smoke
def test_the_two_commands_at_the_top_make_their_own_environment() -> None:
    text = README.read_text(encoding="utf-8")
    top = text[: text.index("\n## ")]
    commands = re.findall(r"^```sh\n(.*)\n```$", top, re.MULTILINE)
    assert len(commands) == 2
    for command, ending in zip(commands, ["fastformer train", "python -m pytest"], strict=True):
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install ")
        assert command.endswith(f" && .venv/bin/{ending}")
