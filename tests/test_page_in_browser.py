"""The page in a headless Chromium, as a reader uses it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
from fake_study import fake_program, fake_run, write_json

from attn_jax import report

pytestmark = pytest.mark.skipif(browser.executable() is None, reason=f"needs one of {', '.join(browser.NAMES)}")

VALUES = {
    "none": [78.6, 77.1, 80.0],
    "dot": [88.6, 85.0, 86.4],
    "multihead": [85.7, 85.0, 87.1],
    "general": [60.0, 6.0],
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four variants, of which three attend and one has heads; the page is written once."""
    folder, names = tmp_path_factory.mktemp("study"), []
    for score, values in VALUES.items():
        runs = [fake_run(folder, {"score": score, "seed": seed}, value) for seed, value in enumerate(values)]
        fake_program(folder, f"p-{score}", runs, 1000.0 * len(score))
        names += runs
    write_json(folder / "study.json", {"titles": ["Scores"], "commands": ["compare --scores=all"], "runs": names})
    report.build(folder)
    return folder


@pytest.fixture(scope="module")
def chromium() -> Iterator[browser.Browser]:
    started = browser.Browser()
    yield started
    started.close()


@pytest.fixture
def page(chromium: browser.Browser, study: Path) -> Iterator[browser.Browser]:
    """The page in a wide window; afterwards nothing has gone wrong, and nothing was asked of the network."""
    chromium.open(study / "report.html", 1400)
    yield chromium
    assert chromium.complaints == []
    assert [url for url in chromium.requests if not url.startswith(("file:", "data:", "blob:"))] == []


def column(page: browser.Browser, number: int) -> list[str]:
    return page.eval(f"[...document.querySelectorAll('.main tbody tr')].map(r => r.cells[{number}].innerText.trim())")


def panels(page: browser.Browser) -> list[str]:
    """The captions of the maps that are shown."""
    return page.eval("[...document.querySelectorAll('.viewer .said')].map(e => e.textContent)")


def drawn(page: browser.Browser, variant: int) -> dict[str, Any]:
    """What a map shows: weights, and the names of rows and columns."""
    place = f'.viewer figure[data-variant="{variant}"] .plot'
    return page.until(
        f"(p => p && p.data && {{z: p.data[0].z, x: p.layout.xaxis.ticktext, y: p.layout.yaxis.ticktext}})"
        f"(document.querySelector('{place}'))"
    )


def stored(study: Path, score: str, seed: int, sentence: int) -> tuple[np.ndarray, list[str], list[str]]:
    """Weights, source and output of an example, from the run's own files."""
    for path in (study / "runs").glob("*/config.json"):
        config = json.loads(path.read_text())
        if (config["score"]["name"], config["seed"]) == (score, seed):
            example = json.loads((path.parent / "attention.json").read_text())["examples"][sentence]
            return np.array(example["weights"]), example["source"], example["target"]
    raise AssertionError(f"no run with {score}, seed {seed}")


def test_tables_sort_by_mouse_and_keyboard(page: browser.Browser) -> None:
    assert column(page, 0) == ["dot", "multihead", "none", "general"]
    titles = page.eval("[...document.querySelectorAll('.main th')].map(th => th.textContent)")

    def head(title: str) -> str:
        return f".main th:nth-child({titles.index(title) + 1})"

    page.click(f"{head('variant')} button")
    assert column(page, 0) == ["dot", "general", "multihead", "none"]
    page.click(f"{head('tokens/s a run')} button")
    # By number, not as text: 7 x 1000 / 2, 9 x 1000 / 3, 3 x 1000 / 3, 4 x 1000 / 3.
    assert column(page, 0) == ["dot", "none", "multihead", "general"]
    page.eval(f"document.querySelector({json.dumps(head('exact_match (test)') + ' button')}).focus()")
    page.press("Enter")
    assert column(page, 0) == ["general", "none", "multihead", "dot"]
    page.press("Enter")
    assert column(page, 0) == ["dot", "multihead", "none", "general"]
    sorts = page.eval("[...document.querySelectorAll('.main th')].map(th => th.getAttribute('aria-sort'))")
    assert {title: order for title, order in zip(titles, sorts, strict=True) if order} == {
        "exact_match (test)": "descending"
    }
    # The first row has no p value: empty cells stay last either way.
    for _ in range(2):
        page.click(f"{head('p')} button")
        assert column(page, titles.index("p"))[-1] == ""


def test_maps_step_through_sentences_seeds_and_heads(page: browser.Browser, study: Path) -> None:
    page.show(".viewer")
    page.until("document.querySelectorAll('.viewer figure .main-svg').length > 0")

    def check(score: str, variant: int, seed: int, sentence: int, head: int | None = None) -> None:
        weights, source, target = stored(study, score, seed, sentence)
        if weights.ndim == 3:
            weights = weights.mean(axis=0) if head is None else weights[head]
        found = drawn(page, variant)
        np.testing.assert_allclose(found["z"], weights, atol=1.5e-4)
        unescaped = [name.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") for name in found["x"]]
        assert (unescaped, found["y"]) == (source, target)

    assert panels(page) == ["dot, seed 0", "multihead, seed 0, mean of 2 heads", "general, seed 0"]
    for score, variant in (("dot", 1), ("multihead", 2), ("general", 3)):
        check(score, variant, 0, 0)
    page.click(".viewer .next")
    check("dot", 1, 0, 1)
    page.press("ArrowRight")
    check("dot", 1, 0, 2)
    page.press("ArrowLeft")
    check("multihead", 2, 0, 1)
    page.click(".viewer .previous")
    page.click(".viewer .previous")
    assert page.eval("document.querySelector('.viewer .place').textContent") == "5 of 5"
    check("dot", 1, 0, 4)
    assert page.eval("document.querySelector('.viewer').innerText").count("</script><b>$0</b>") >= 1
    page.choose(".viewer .sentence select", "3")
    page.choose(".viewer .head", "1")
    page.choose(".viewer .seed", "2")
    # The third variant has two seeds: its first one is shown, and said.
    assert panels(page) == ["dot, seed 2", "multihead, seed 2, head 2 of 2", "general, seed 0"]
    check("dot", 1, 2, 3)
    check("multihead", 2, 2, 3, head=1)
    check("general", 3, 0, 3)


def test_maps_side_by_side_as_ticked_and_weights_under_the_mouse(page: browser.Browser, study: Path) -> None:
    page.show(".viewer")
    page.until("document.querySelectorAll('.viewer figure .main-svg').length > 0")
    page.click('.viewer input[value="1"]')
    assert panels(page) == ["multihead, seed 0, mean of 2 heads", "general, seed 0"]
    page.click('.viewer input[value="2"]')
    assert panels(page) == ["general, seed 0"]
    page.click('.viewer input[value="1"]')
    assert panels(page) == ["dot, seed 0", "general, seed 0"]
    tops = page.eval("[...document.querySelectorAll('.viewer figure')].map(f => f.getBoundingClientRect().top)")
    assert tops[0] == tops[1], "not side by side"

    weights, source, target = stored(study, "dot", 0, 0)
    page.show('.viewer figure[data-variant="1"] .plot')
    place = page.eval(
        "(p => { const r = p.getBoundingClientRect(), {_size: s} = p._fullLayout;"
        " return [r.x + s.l, r.y + s.t, s.w, s.h]; })"
        "(document.querySelector('.viewer figure[data-variant=\"1\"] .plot'))"
    )
    row, cell = 2, 1
    page.hover(place[0] + place[2] * (cell + 0.5) / len(source), place[1] + place[3] * (row + 0.5) / len(target))
    said = page.until("[...document.querySelectorAll('.viewer .hoverlayer text')].map(t => t.textContent).join(' ')")
    assert f"{target[row]} ← {source[cell]}" in said
    assert f"{weights[row, cell]:.3f}" in said


@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_is_wider_than_the_window(chromium: browser.Browser, study: Path, width: int) -> None:
    chromium.open(study / "report.html", width)
    chromium.eval("document.querySelectorAll('details').forEach(d => d.open = true)")
    places = chromium.eval("document.querySelectorAll('[data-figure], .viewer').length")
    for place in range(places):
        one = f"document.querySelectorAll('[data-figure], .viewer')[{place}]"
        chromium.eval(f"{one}.scrollIntoView()")
        chromium.until(f"{one}.querySelector('.main-svg') !== null")
    assert chromium.eval("document.documentElement.scrollWidth") <= width
    # What is wider scrolls in a box of its own, and no chart sticks out of its place.
    assert chromium.sticking_out(width) == []
    small = chromium.eval(
        "[...document.querySelectorAll('p, td, th, button, dd, summary')].filter(e => e.innerText.trim() &&"
        " e.offsetParent && parseFloat(getComputedStyle(e).fontSize) < 12).map(e => e.outerHTML.slice(0, 80))"
    )
    assert small == [], "text too small to read"
    assert chromium.complaints == []


def test_colours_follow_the_system(page: browser.Browser) -> None:
    def seen() -> list[str]:
        page.show("[data-figure=s0-forest]")
        return page.until(
            "(p => p.data && [getComputedStyle(document.body).backgroundColor, p.layout.font.color,"
            " p.data[0].marker.color])(document.querySelector('[data-figure=s0-forest]'))"
        )

    light = seen()
    page.scheme(dark=True)
    page.until(f"document.querySelector('[data-figure=s0-forest]').layout.font.color !== {json.dumps(light[1])}")
    dark = seen()
    assert light[0] == "rgb(255, 255, 255)"
    assert all(one != other for one, other in zip(light, dark, strict=True))


def test_the_legend_hides_a_variant_in_every_chart(page: browser.Browser) -> None:
    page.click('.legend button[data-variant="1"]')
    for name in ("forest", "dev-loss", "length", "cost"):
        place = f"document.querySelector('[data-figure=s0-{name}]')"
        page.eval(f"{place}.scrollIntoView()")
        traces = f"{place}.data.filter(t => t.visible !== false)"
        shown = page.until(f"{place}.data && [...new Set({traces}.map(t => t.legendgroup))].sort()")
        assert shown == ["0", "2", "3"], name


def test_the_command_can_be_copied(page: browser.Browser) -> None:
    page.click("button.copy")
    page.until("document.querySelector('button.copy').textContent !== 'Copy'")
    assert page.eval("String(getSelection())").strip() == "compare --scores=all"
