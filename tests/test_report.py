"""The report: what it holds, what it says is missing, and that one file is all of it."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import Recorder, one_thread, small_settings, tree

from fastformer.analysis.attention import attention_weights
from fastformer.analysis.loading import load_run
from fastformer.analysis.report import Report, collect_report
from fastformer.analysis.report_page import page
from fastformer.analysis.run_evaluation import evaluate_run
from fastformer.cli import main
from fastformer.errors import InvalidValueError, RunError
from fastformer.training.runs import train_run

__all__ = ["one_thread"]  # a fixture that every test here uses


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a small model, not to perfection, so that there are mistakes to show."""
    run = tmp_path_factory.mktemp("runs") / "trained"
    train_run(small_settings(examples=1000, epochs=4), run, Recorder())
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def data_of(html: str) -> dict[str, Any]:
    """Return the JSON object in a page."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html)
    data: dict[str, Any] = json.loads(text)
    return data


def outside_references(html: str) -> list[str]:
    """Return everything in a page that could make a browser ask for another file."""
    patterns = (
        r"""(?:src|srcset|poster|action)\s*=\s*["'][^"']*""",
        r"""href\s*=\s*["'](?!#)[^"']*""",
        r"<(?:link|iframe|object|embed|base|img)\b[^>]*",
        r"@import[^;]*|url\([^)]*",
        r"https?:[^\s\"']*|[\"']//[^\"']*",
        r"\b(?:fetch|import|XMLHttpRequest|WebSocket|EventSource|sendBeacon)\s*\(",
    )
    return [found for pattern in patterns for found in re.findall(pattern, html)]


@pytest.mark.smoke
def test_the_report_is_one_file_that_asks_for_nothing(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(run)
    assert main(["report", str(run)]) == 0
    out, err = capsys.readouterr()
    assert str(run / "report.html") in out and err == ""
    after = tree(run)
    assert after.keys() - before.keys() == {"report.html"} and before.items() <= after.items()
    html = (run / "report.html").read_text()
    assert outside_references(html) == []
    assert "default-src 'none'" in html


@pytest.mark.parametrize(
    "planted",
    [
        '<script src="plotly.js"></script>',
        '<link rel="stylesheet" href="style.css">',
        "<style>@import 'x.css';</style>",
        '<i style="background: url(x.png)"></i>',
        '<a href="https://example.org">x</a>',
        "<script>import('./x.js'); fetch('x')</script>",
    ],
)
def test_a_reference_to_another_file_is_noticed(planted: str, run: Path) -> None:
    html = page(collect_report(run))
    assert outside_references(html.replace("</body>", f"{planted}</body>"))


def test_the_numbers_are_those_of_the_run(run: Path) -> None:
    found = collect_report(run)
    evaluated = evaluate_run(run).as_json()
    assert found.notes == []
    assert found.scores is not None and found.curves is not None
    assert found.scores.exact.accuracy == evaluated["test_accuracy"]
    accuracies = {name: share.accuracy for name, share in found.scores.per_operation.items()}
    assert accuracies == evaluated["per_operation"]
    html = page(found)
    for name, share in found.scores.per_operation.items():
        assert f'<th scope="row">{name}</th>' in html
        assert f"{share.correct} of {share.total}" in html
    assert html.count("<svg") == 5  # four panels and the map
    assert html.count("<circle") == 4 * 6 + 15
    for name, value in found.config["training"].items():
        assert f'<th scope="row">{name}</th>' in html, (name, value)


def test_the_weights_are_those_of_the_model(run: Path) -> None:
    found = collect_report(run, ["max(5, 3, 9)"])
    data = data_of(page(found))
    predictor = load_run(run).predictor
    assert data["attention"][0]["label"].startswith("Max ( 5 , 3 , 9 )")
    for example in data["attention"]:
        text = " ".join(example["tokens"])
        tokens, layers = attention_weights(predictor, text)
        assert tokens == example["tokens"]
        for shown, weights in zip(example["layers"], layers, strict=True):
            assert np.abs(np.array(shown) - weights).max() <= 0.5e-3 + 1e-6
        prediction = predictor.predict(text)
        assert (example["prediction"], example["correct"]) == (
            prediction.prediction,
            prediction.correct,
        )
    assert any(not example["correct"] for example in data["attention"])
    assert {e["tokens"][0] for e in data["attention"]} == {"First", "Second", "Last", "Max", "Min"}


def test_the_maps_begin_before_training_and_end_with_the_best_model(run: Path) -> None:
    found = collect_report(run)
    assert found.map_labels[0] == "before training"
    assert found.map_labels[1:-1] == [f"after epoch {epoch}" for epoch in range(1, 5)]
    best = found.curves and found.curves.best
    assert best is not None
    assert found.embeddings is not None
    assert np.array_equal(found.maps[-1], found.embeddings.map.points)
    # The map of the epoch that the best weights are of is the best model's own.
    np.testing.assert_allclose(found.maps[int(best)], found.maps[-1], atol=1e-6)
    assert np.abs(found.maps[0] - found.maps[-1]).max() > 0.01


def test_many_epochs_are_thinned_out(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastformer.analysis.report.MOST_MAPS", 3)
    labels = collect_report(run).map_labels
    assert labels == ["before training", "after epoch 2", "after epoch 4", "the best model"]


def test_a_large_model_shows_fewer_expressions(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastformer.analysis.report.MOST_WEIGHTS", 300)
    assert len(collect_report(run).examples) == 2  # of 1 x 2 x 8 x 8 weights
    monkeypatch.setattr("fastformer.analysis.report.MOST_WEIGHTS", 1)
    assert len(collect_report(run, ["Max(1,2,3)", "Min(1,2,3)"]).examples) == 2


def test_numbers_are_those_of_the_terminal(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    html = re.sub(r"<[^>]*>", "|", page(collect_report(run)))
    assert main(["evaluate", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    facts = dict(re.findall(r"^(test accuracy|95 % interval) +(.*?)(?: inputs never.*)?$", line)[0]
                 for line in lines[2:4])  # fmt: skip
    for shown in facts.values():
        assert f"|{shown}|" in html
    for line in lines:
        if found := re.search(
            r"^  (?!units)(\w+) +[█░]+ +([\d.]+ %)   (\d+ of \d+), .* interval (.*)$", line
        ):
            name, accuracy, counts, interval = found.groups()
            short = interval.replace(" %", "", 1)
            assert re.search(rf"\|{name}\|+{accuracy}\|+{counts}\|+{short}\|", html), line
    assert main(["embeddings", str(run)]) == 0
    text = capsys.readouterr().out
    cosines = re.findall(r"[+-]\d\.\d\d", text.split("cosines of what was learned")[0])
    assert len(cosines) > 100 and all(f"|{cosine}|" in html for cosine in cosines[:100])


def test_cosines_below_zero_are_shaded_too(run: Path) -> None:
    found = collect_report(run)
    assert found.embeddings is not None
    below = found.embeddings.digit_cosines.min()
    assert below < -0.1
    html = page(found)
    assert f'<td class="below" style="--w:{-below:.3f}">{below:+.2f}</td>' in html
    assert '<td style="--w:1.000">+1.00</td>' in html


def test_a_run_in_bytes_of_no_encoding_has_a_page(run: Path) -> None:
    found = collect_report(run)
    found.name = "a\udcff\x1b[1m"
    assert r"<title>a\udcff\x1b[1m</title>" in page(found)
    page(found).encode()


def test_text_of_the_user_stays_text(run: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    found = collect_report(run)
    found.name = evil
    found.notes.append(evil)
    found.config["task"] = {evil: evil}
    found.map_labels[0] = evil
    found.examples[0].attention.tokens[0] = evil
    html = page(found)
    assert html.count("</script>") == html.count("<script") == 2
    assert data_of(html)["maps"][0]["label"] == evil
    assert "{{" not in html


def test_a_run_that_lacks_records_says_which(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    (run / "result.json").unlink()
    shutil.rmtree(run / "embeddings")
    found = collect_report(run)
    html = page(found)
    for lack in ("has no record of a finished epoch", "has no result yet", "records of its embedd"):
        assert any(lack in note for note in found.notes)
        assert lack in html
    assert "There are no records to draw" in html
    assert data_of(html)["attention"]
    assert len(found.maps) == 1 and 'id="epoch"' not in html


def test_a_run_without_a_model_shows_its_curves(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "checkpoints/best.safetensors").unlink()
    assert main(["report", str(run), "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert "no best checkpoint yet" in found["missing"][0] and "no best checkpoint yet" in err
    html = Path(found["report"]).read_text()
    assert html.count("<svg") == 4 and "There is no model to ask" in html
    (run / "metrics.jsonl").unlink()
    with pytest.raises(RunError, match="nothing to report: .*no record of .*; .*no best checkpoin"):
        collect_report(run)


def test_damaged_records_are_told_on_the_page(run: Path) -> None:
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], "{", *lines[2:], ""]))
    found = collect_report(run)
    assert found.curves is not None and found.curves.x == [1, 3, 4]
    assert "line 2" in page(found).split("<main>")[0]


def test_an_expression_that_the_task_does_not_have_is_refused(run: Path) -> None:
    with pytest.raises(InvalidValueError, match="unknown operation 'Mix'"):
        collect_report(run, ["Mix(1,2,3)"])
    with pytest.raises(InvalidValueError, match="wrong number of arguments"):
        collect_report(run, ["Max(1,2)"])


def test_a_damaged_config_is_refused(run: Path) -> None:
    config = run / "config.toml"
    config.write_text(config.read_text().replace("epochs = 4", "epochs = 0"))
    with pytest.raises(RunError, match="epochs must be an integer >= 1, got 0"):
        collect_report(run)


def test_a_report_of_nothing_is_still_a_page() -> None:
    html = page(Report(name="x", config={}))
    assert html.startswith("<!doctype html>") and "{{" not in html
