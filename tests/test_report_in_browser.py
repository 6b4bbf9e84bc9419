"""The report in a real browser: loaded from disk, used by pointer and by keyboard."""

import dataclasses
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import FILES, Browser, find_browser
from program import HANG
from runs import SIZES, Recorder, one_thread, small_settings

from fastformer.analysis.report import collect_report
from fastformer.analysis.report_page import _resource, page
from fastformer.analysis.svg import map_places, map_svg
from fastformer.data.answers import AnswerTask
from fastformer.models.config import DecoderConfig
from fastformer.training.answers_run import AnswerSettings
from fastformer.training.config import TrainingConfig
from fastformer.training.runs import train_run
from fastformer.writing import hundredths, percent

__all__ = ["one_thread"]  # a fixture that every test here uses

PROGRAM = find_browser()
pytestmark = [
    pytest.mark.skipif(
        PROGRAM is None, reason="no Chromium on the path; on Debian: apt-get install chromium"
    ),
    pytest.mark.skipif(
        0 <= resource.getrlimit(resource.RLIMIT_NOFILE)[1] < FILES,
        reason=f"Chromium ends where it may not have {FILES} files open (ulimit -n)",
    ),
]
WEIGHTS = "#weights"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the report of a small model with two layers of two heads."""
    directory = tmp_path_factory.mktemp("report")
    run = directory / "a run & more"
    settings = small_settings(epochs=2)
    model = dataclasses.replace(settings.model, num_layers=2)
    train_run(dataclasses.replace(settings, model=model), run, Recorder())
    (directory / "report.html").write_text(page(collect_report(run, ["Max ( 5 3 9 )"])))
    return directory / "report.html"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Start one browser for all tests; each loads the page anew."""
    assert PROGRAM is not None
    with Browser(PROGRAM, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(program: Browser, report: Path) -> Browser:
    program.prefer("light")
    program.size(1100, 800)
    program.requests.clear()
    program.errors.clear()
    program.open(report)
    return program


def choose(browser: Browser, select: str, index: int) -> None:
    """Choose an entry of a list as a person does: with the keyboard."""
    browser.run(f"document.getElementById('{select}').focus()")
    browser.press("Home")
    for _ in range(index):
        browser.press("ArrowDown")


def picture_changes(browser: Browser, select: str, index: int) -> bool:
    """Tell whether the heatmap looks different after a choice."""
    before = browser.picture(WEIGHTS)
    choose(browser, select, index)
    return browser.picture(WEIGHTS) != before


def weights_shown(browser: Browser) -> list[str]:
    shown: list[str] = browser.run(
        "[...document.querySelectorAll('#weights td[data-from]')].map(e => e.style.cssText)"
    )
    return shown


def weights_known(browser: Browser, layer: int, head: int) -> list[str]:
    known: list[str] = browser.run(
        f"data.attention[0].layers[{layer}][{head}].flat().map(w => `--w: ${{w}};`)"
    )
    return known


def test_the_page_loads_from_disk_and_asks_for_nothing_else(browser: Browser, report: Path) -> None:
    assert browser.requests == [report.as_uri()]
    assert browser.errors == []
    assert browser.run("document.title") == "a run & more"
    assert weights_shown(browser) == weights_known(browser, 0, 0)
    assert len(weights_shown(browser)) == 64


def test_another_head_is_another_picture(browser: Browser) -> None:
    first = browser.picture(WEIGHTS)
    assert picture_changes(browser, "head", 1)
    assert weights_shown(browser) == weights_known(browser, 0, 1)
    assert picture_changes(browser, "layer", 1)
    assert weights_shown(browser) == weights_known(browser, 1, 1)
    assert picture_changes(browser, "expression", 1)
    for select in ("expression", "layer", "head"):
        choose(browser, select, 0)
    assert browser.picture(WEIGHTS) == first
    assert browser.errors == []


def test_a_page_whose_picture_stays_the_same_is_noticed(
    browser: Browser, report: Path, tmp_path: Path
) -> None:
    html = report.read_text()
    broken = html.replace("const head = Number(byId", "const head = 0 * Number(byId")
    assert broken != html
    (tmp_path / "broken.html").write_text(broken)
    browser.open(tmp_path / "broken.html")
    assert not picture_changes(browser, "head", 1)


def test_errors_and_requests_of_a_page_are_noticed(
    browser: Browser, report: Path, tmp_path: Path
) -> None:
    html = report.read_text().replace("default-src 'none'", "default-src *")
    planted = '<img src="missing.png"><script>nothing.at.all();</script></body>'
    (tmp_path / "broken.html").write_text(html.replace("</body>", planted))
    browser.open(tmp_path / "broken.html")
    assert any(url.endswith("missing.png") for url in browser.requests)
    assert any("nothing is not defined" in error for error in browser.errors)


def test_a_thumbnail_chooses_its_head(browser: Browser) -> None:
    browser.run("document.querySelectorAll('#heads button')[3].click()")
    assert weights_shown(browser) == weights_known(browser, 1, 1)
    pressed = "[...document.querySelectorAll('#heads button')].map(b => b.ariaPressed)"
    assert browser.run(pressed) == ["false", "false", "false", "true"]
    assert browser.run("document.activeElement.ariaLabel") == "layer 2, head 2"
    assert browser.run("document.getElementById('head').value") == "1"


def test_a_cell_tells_its_weight_to_the_pointer_and_to_the_keyboard(browser: Browser) -> None:
    browser.point_at("#weights td[data-from='2'][data-to='4']")
    weight = browser.run("data.attention[0].layers[0][0][2][4]")
    told = browser.run("document.getElementById('readout').textContent")
    assert told == f'"5" at position 2 looks at "3" at position 4: {100 * weight:.2f} %'
    browser.run("document.querySelector('#weights td[tabindex=\"0\"]').focus()")
    for key in ("ArrowRight", "ArrowDown", "ArrowDown", "ArrowLeft", "ArrowLeft"):
        browser.press(key)
    told = browser.run("document.getElementById('readout').textContent")
    assert told.startswith('"5" at position 2 looks at "Max" at position 0: ')


def test_rows_of_a_decoder_that_write_no_answer_are_pale(browser: Browser, tmp_path: Path) -> None:
    settings = AnswerSettings(
        task=AnswerTask(name="addition", examples=64, validation_examples=5, test_examples=20),
        model=DecoderConfig(vocab_size=23, **SIZES | {"num_layers": 2}),
        training=TrainingConfig(epochs=1),
    )
    train_run(settings, tmp_path / "run", Recorder())
    (tmp_path / "report.html").write_text(page(collect_report(tmp_path / "run", ["12 + 345"])))
    browser.open(tmp_path / "report.html")
    pale = "[...document.querySelectorAll('#weights tbody tr')].map(row => row.className)"
    assert set(browser.run(pale)) == {""}
    assert picture_changes(browser, "layer", 1)
    rows = browser.run(pale)
    assert rows == ["unread"] * 21 + [""] * (len(rows) - 21)
    assert "it is 357" in browser.run("document.getElementById('answer').textContent")
    assert browser.run("document.documentElement.scrollWidth <= innerWidth") is True
    assert browser.errors == []


def test_the_map_moves_over_the_epochs(browser: Browser) -> None:
    before = browser.picture("#map")
    browser.run("document.getElementById('epoch').focus()")
    browser.press("Home")
    assert browser.picture("#map") != before
    assert browser.run("document.getElementById('epoch-label').textContent") == "before training"
    browser.press("End")
    assert browser.picture("#map") == before


@pytest.mark.parametrize("width", [1400, 800, 360])
def test_the_page_is_never_wider_than_the_window(width: int, browser: Browser) -> None:
    browser.size(width, 700)
    browser.run("document.querySelector('#expression option').textContent = 'Max ( '.repeat(40)")
    assert browser.run("document.documentElement.scrollWidth") <= width
    widest = "Math.max(...[...document.querySelectorAll('section')].map(e => e.scrollWidth))"
    assert browser.run(widest) <= width


def wait_for(browser: Browser, script: str) -> None:
    """Wait until a script is true: observers of sizes are called after a drawing."""
    end = time.monotonic() + HANG
    while not browser.run(script):
        assert time.monotonic() < end, script
        time.sleep(0.02)


def test_tables_that_go_on_to_a_side_say_so(browser: Browser) -> None:
    boxes = "[...document.querySelectorAll('.scroll')].filter(e => e.checkVisibility())"
    marked = "e.classList.contains('overflows')"
    right = f"{boxes}.every(e => {marked} === (e.scrollWidth > e.clientWidth + 1))"
    browser.size(390, 800)
    wait_for(browser, f"{boxes}.some(e => {marked}) && {right}")
    said = "getComputedStyle(document.querySelector('.scroll.overflows'), '::after').content"
    assert "sideways" in browser.run(said)
    browser.size(2000, 800)
    wait_for(browser, f"!{boxes}.some(e => {marked}) && {right}")


def test_labels_are_not_cut_at_the_edge_of_the_map(browser: Browser, tmp_path: Path) -> None:
    names = ["Second", "Second", "5", "Second", "Last"]
    places = map_places([np.array([[-1, 0], [1, 0], [0, 1], [0, -1], [1, 1]])])[0]
    (tmp_path / "map.html").write_text(f"<style>{_resource('report.css')}</style>"
                                       + map_svg(names, places))  # fmt: skip
    browser.open(tmp_path / "map.html")
    for width in (1100, 360):
        browser.size(width, 800)
        outside = """(() => {
          const map = document.getElementById('map').getBoundingClientRect();
          return [...document.querySelectorAll('#map text')].map(e => e.getBoundingClientRect())
            .filter(r => r.right > map.right || r.left < map.left || r.top < map.top
              || r.bottom > map.bottom).length;
        })()"""
        assert browser.run(outside) == 0


def test_the_page_rounds_as_the_terminal_does(browser: Browser) -> None:
    shares = [0.0, 0.57, 0.5699, 0.99996, 0.999999, 1.0, 0.29, 0.125]
    for digits in (0, 1, 2):
        shown = browser.run(f"{shares}.map(share => percent(share, {digits}))")
        assert shown == [percent(share, digits) for share in shares]
    assert browser.run(f"{shares}.map(hundredths)") == [hundredths(share) for share in shares]


CONTRAST = """
(() => {
  const numbers = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    if (!element) return [255, 255, 255];
    const [r, g, b, a = 1] = numbers(getComputedStyle(element).backgroundColor);
    const under = a < 1 ? behind(element.parentElement) : [0, 0, 0];
    return [r, g, b].map((v, i) => a * v + (1 - a) * under[i]);
  };
  const ratio = element => {
    const pair = [light(numbers(getComputedStyle(element).color)), light(behind(element))];
    return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
  };
  const texts = 'h1, h2, h3, p, a, dt, dd, th, td, caption, figcaption, label, select, button';
  return Math.min(...[...document.querySelectorAll(texts)]
    .filter(e => e.innerText && e.checkVisibility() && !e.closest('.unread')).map(ratio));
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_schemes(scheme: str, browser: Browser, report: Path) -> None:
    browser.prefer(scheme)
    browser.open(report)
    assert browser.run(CONTRAST) >= 4.5  # the least that WCAG 2 allows, AA
    browser.run("document.querySelector('h2').style.color = '#777'")
    assert browser.run(CONTRAST) < 4.5


def test_every_control_has_a_label(browser: Browser) -> None:
    unlabelled = (
        "[...document.querySelectorAll('select, input, button')]"
        ".filter(e => !(e.labels && e.labels.length) && !e.innerText).length"
    )
    assert browser.run(unlabelled) == 0
    assert browser.run("[...document.querySelectorAll('svg')].every(e => e.ariaLabel)") is True
