"""What the command line writes: bars, tables, progress."""

import json
import math
import os
import re
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from program import HANG, ROOT

from fastformer.cli import console, progress

RECORD: dict[str, Any] = {
    "epoch": 3,
    "step": 750,
    "train_loss": 0.12345,
    "train_accuracy": 0.98765,
    "validation_loss": 0.2,
    "validation_accuracy": 1.0,
    "learning_rate": 1e-3,
    "seconds": 1.5,
    "examples_per_second": 12345.6,
    "best": True,
}


@given(st.floats(min_value=0, max_value=1))
def test_a_bar_has_forty_cells_and_is_full_for_the_whole_only(share: float) -> None:
    drawn = console.bar(share)
    assert len(drawn) == 40
    assert drawn.strip("█").strip("░") == ""
    if share < 0.999:
        assert drawn.endswith("░")


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("share", "decimals", "text"),
    [
        (0.0, 1, "  0.0 %"),
        (0.57, 1, " 57.0 %"),
        (0.9996, 1, " 99.9 %"),
        (1.0, 1, "100.0 %"),
        (0.9999, 2, " 99.99 %"),
        (1.0, 2, "100.00 %"),
    ],
)
def test_percentages_are_rounded_down_and_aligned(share: float, decimals: int, text: str) -> None:
    assert console.percent(share, decimals) == text


@pytest.mark.smoke
def test_the_table_of_operations_has_the_hardest_first(capsys: pytest.CaptureFixture[str]) -> None:
    console.per_group({"First": 1.0, "Max": 0.5, "Last": 1.0, "Min": 0.975})
    assert capsys.readouterr().out.splitlines() == [
        "accuracy by operation, hardest first",
        f"  Max        {'█' * 20}{'░' * 20}  50.0 %",
        f"  Min        {'█' * 39}{'░'}  97.5 %",
        f"  First      {'█' * 40} 100.0 %",
        f"  Last       {'█' * 40} 100.0 %",
        "  hardest    Max",
        "  easiest    First, Last",
    ]


def test_equal_operations_are_not_ranked(capsys: pytest.CaptureFixture[str]) -> None:
    console.per_group({"Max": 1.0, "Min": 1.0})
    assert capsys.readouterr().out.splitlines()[-1] == "  all are equally hard"


def test_an_encoding_without_bars_does_not_stop_the_program() -> None:
    code = (
        "from fastformer.cli import console; console.have_streams(); console.line(console.bar(0.5))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "?" * 40 + "\n", done.stderr


def test_json_is_one_line_of_ascii_and_has_null_for_what_is_not_finite(
    capsys: pytest.CaptureFixture[str],
) -> None:
    value = {
        "a": [math.nan, (1.0, -math.inf)],
        "\x1b\udcff": "é\x9b",
        "b": {"c": np.float32("nan")},
    }
    console.json_line(value)
    out = capsys.readouterr().out
    assert out.isascii() and out.count("\n") == 1 and "\x1b" not in out
    wanted = {"a": [None, [1.0, None]], "\x1b\udcff": "é\x9b", "b": {"c": None}}
    assert json.loads(out) == wanted


def test_no_code_from_elsewhere_reaches_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console.line("a\x1b[31m\nb\x9b")
    console.notice("c\x07\r")
    console.error("d\x1b]0;x\ny" + "z" * 100_000)
    out, err = capsys.readouterr()
    assert out == "a\\x1b[31m\nb\\x9b\n"
    first, second, rest = err.split("\n")
    assert (first, rest) == ("c\\x07\\r", "")
    assert second.startswith("fastformer: d\\x1b]0;x\\nyzz") and len(second) < 2_100


@pytest.mark.parametrize("name", ["a b", "it's", "a$x_$", "a\x1b[1m\n'", "a\udcff", "é\t"])
def test_a_command_that_is_shown_can_be_copied_into_a_shell(name: str) -> None:
    word = console.shell_word(name)
    assert word.isprintable()
    done = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True)
    assert done.stdout == os.fsencode(name)


def test_of_a_text_tokens_are_counted_and_bits_per_byte_are_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for bar in (progress.LineProgress(), progress.BarProgress()):
        with bar as callbacks:
            callbacks.reading(5, 10)
            callbacks.reading(10, 10)
            callbacks.text(64.0, 2.0)
            callbacks.started(1000, 0, "a small model")
            callbacks.stepped(1, 2 * math.log(2), 1e-3, 32)
            callbacks.epoch_finished(RECORD | {"tokens_per_second": 98765.4})
            callbacks.finished()
        err = capsys.readouterr().err.splitlines()
        assert "epoch  train loss  validation loss  bits per byte    tokens/s" in err
        assert "    3      0.1235           0.2000          0.144      98,765  best" in err


def test_without_a_terminal_each_epoch_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.callbacks() as callbacks:
        callbacks.started(1000, 0, "a small model")
        callbacks.stepped(1, 2.0, 1e-3, 32)
        callbacks.epoch_finished(RECORD)
        callbacks.message("a thing worth knowing")
        callbacks.finished()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "a small model",
        "epoch  train loss  accuracy  validation loss  accuracy  examples/s",
        "    3      0.1235    98.7 %           0.2000   100.0 %      12,346  best",
        "a thing worth knowing",
    ]


def test_a_resumed_run_says_where_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    progress.LineProgress().started(5000, 1234, "a small model")
    assert "going on from step 1,234 of 5,000" in capsys.readouterr().err


def test_the_bar_shows_rate_and_time_left_and_is_drawn_ten_times_a_second(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    with progress.BarProgress() as bar:
        bar.started(4000, 0, "a small model")
        for step in range(1, 2001):  # 1000 steps a second for two seconds
            now[0] += 0.001
            bar.stepped(step, 0.5, 1e-3, 32)
        bar.epoch_finished(RECORD)
        bar.finished()
    out, err = capsys.readouterr()
    assert out == ""
    frames = re.findall(r"step ([\d,]+)/4,000 loss 0\.5000 ([\d,]+) examples/s", err)
    shown = list(dict.fromkeys(frames))
    assert 15 <= len(shown) <= 20
    assert shown[-1][1] in ("31,999", "32,000", "32,001")
    assert "left" in err
    assert "    3      0.1235" in err


def test_the_bar_goes_away_when_training_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), progress.BarProgress() as bar:
        bar.started(10, 0, "a small model")
        raise ZeroDivisionError
    assert not bar._bar.live.is_started


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
@pytest.mark.parametrize("full", [("stdout",), ("stderr",), ("stdout", "stderr")])
def test_output_on_a_full_disk_is_a_mistake_and_no_traceback(full: tuple[str, ...]) -> None:
    words = {"stdout": "--version", "stderr": "no-command"}
    with open("/dev/full", "w") as nowhere:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        done = subprocess.run(
            [sys.executable, "-m", "fastformer", words[full[0]]],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            **streams | dict.fromkeys(full, nowhere),
            **{"text": True, "timeout": HANG},
        )
    assert done.returncode == 2
    if full == ("stdout",):
        assert done.stderr.startswith("fastformer: cannot write the output: No space left on")
        assert done.stderr.count("\n") == 1
