"""Jobs on text of the project's own tables: the tokens of their peers, the loop, the recipe."""

from pathlib import Path

import pytest

from benchmarks import text_jobs, text_suite
from benchmarks.__main__ import main
from fastformer.bench.processes import run_worker
from fastformer.bench.workloads import WORKLOADS, Workload
from fastformer.training import token_file

LINES = [f"{a} and {b}, said the {c}.\n\n" for a in "abcde" for b in "fghij" for c in "klmno"]
TINY = Workload("P4", "tiny", "decoder", 3, 8, 16, 2, 1, 32, 20)


@pytest.fixture(autouse=True)
def _tokens_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token files are made anew; compiled kernels stay where they are."""
    monkeypatch.setattr(token_file, "cache_directory", lambda: tmp_path / "tokens")


@pytest.fixture
def text(tmp_path: Path) -> str:
    source, path = tmp_path / "source.txt", tmp_path / "text.txt"
    source.write_text("".join(LINES))
    found = text_jobs.write_text(str(source), str(path), 20_000)
    assert found["bytes"] == path.stat().st_size == 20_000
    assert path.read_text()[:2000] != source.read_text()[:2000]
    return str(path)


def test_characters_are_those_of_nanogpts_prepare(text: str) -> None:
    ours, theirs = (text_jobs.time_tokens(s, "characters", text) for s in ("numba", "nanogpt"))
    assert ours["tokens"] == theirs["tokens"] == 20_000
    assert ours["checksum"] == theirs["checksum"] and ours["peak_bytes"] > 1e7


@pytest.mark.needs("tokenizers")
def test_parts_of_words_are_those_of_the_library(text: str, tmp_path: Path) -> None:
    learned = str(tmp_path / "tokenizer.json")
    text_jobs.learn_tokens(text, learned, 270, 5_000)
    ours, theirs = (text_jobs.time_tokens(s, learned, text) for s in ("numba", "tokenizers"))
    assert ours["tokens"] == theirs["tokens"] < 20_000
    assert ours["checksum"] == theirs["checksum"]


@pytest.mark.parametrize("system", ["numba", "step"])
def test_a_step_of_the_loop_is_timed(
    system: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WORKLOADS, "P4", TINY)
    found = text_jobs.time_loop(system, "P4", text, str(tmp_path / "run"), 3)
    assert 0 < found["median"] < 60 and found["mean"] > 0


@pytest.mark.needs("torch")
def test_the_recipe_of_a_peer_has_the_losses_of_ours(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"crops": 36, "epochs": 1, "embed_dim": 16, "ffn_dim": 32, "num_layers": 1,
              "num_heads": 2, "max_seq_len": 16, "warmup_steps": 2}  # fmt: skip
    monkeypatch.setitem(
        text_jobs.PRESETS["text"],
        text_jobs.RECIPE,
        text_jobs.PRESETS["text"][text_jobs.RECIPE] | recipe,
    )
    monkeypatch.setattr(text_jobs, "PEER_STEPS", 3)
    ours = text_jobs.time_recipe("numba", text, str(tmp_path / "run"), 1)
    theirs = text_jobs.time_recipe("torch", text, "", 1)
    assert theirs["losses"] == pytest.approx(ours["losses"], rel=1e-4)
    assert len(ours["losses"]) == 3 and ours["validation_loss"] > 0 and theirs["seconds"] > 0


def test_without_a_text_the_suite_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(text_suite, "SOURCE", tmp_path / "none.txt")
    assert main(["--suite", "text", "--repeats", "1", "--threads", "1"]) == 2
    assert "needs an English text of a megabyte" in " ".join(capsys.readouterr().err.split())


def test_a_job_runs_in_a_process_of_its_own(text: str, tmp_path: Path) -> None:
    job = {"task": "benchmarks.text_jobs:time_tokens", "system": "numba", "tokenizer": "bytes"}
    caches = {"FASTFORMER_CACHE_DIR": str(tmp_path / "cache")}
    assert run_worker("numba", {**job, "path": text}, 1, environment=caches)["tokens"] == 20_000
