"""The page in a real browser: nothing sticks out, nothing is fetched, dark is dark."""

# ruff: noqa: E402  the imports follow the skips

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

for _extra in ("matplotlib", "jinja2", "PIL"):
    pytest.importorskip(_extra)

import browser
from PIL import Image

from siamcuda.report.page import write_page
from siamcuda.report.samples import Samples
from siamcuda.verification import Calibrator, evaluate, from_distances

if browser.executable() is None:
    pytest.skip("no chromium is installed", allow_module_level=True)

#: A word that no line break helps, and right-to-left text.
LABELS = ("Ada", "W" * 80, "<script>document.title = 'hit'</script>", "שרה\u202e evil")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pages")
    generator = torch.Generator().manual_seed(0)
    embeddings, labels = torch.randn(40, 6, generator=generator), torch.arange(40) % 4
    report = evaluate(embeddings, labels, far=(0.1, 0.001), bootstrap=64)
    files = [folder / f"{'long_name_' * 9}{row}.png" for row in range(40)]
    for row, path in enumerate(files):
        if row % 5:
            Image.new("RGB", (40 + 20 * row, 60), (6 * row, 90, 90)).save(path)
        else:
            path.write_bytes(b"broken")
    names = [LABELS[label] for label in labels.tolist()]
    calibrator = Calibrator.fit(report)
    write_page(folder / "pictures.html", report, samples=Samples(names, files, 6),
               calibrator=calibrator, title="Pictures " + "x" * 90)  # fmt: skip
    write_page(folder / "rows.html", report, samples=Samples(names, source="y" * 90))
    write_page(folder / "bare.html", from_distances([0.1], [0.2]))
    write_page(folder / "endless.html", from_distances([np.inf], [np.inf]))  # 1.797…e+308
    draw = np.random.default_rng(0)
    many = from_distances(draw.normal(1, 0.2, 50_000), draw.normal(2, 0.2, 1_000_000))
    write_page(folder / "many.html", many, far=(0.1, 1e-3, 1e-4, 1e-5, 1e-6, 0))
    return {p.stem: p.as_uri() for p in folder.glob("*.html")}


@pytest.fixture(scope="module")
def page() -> Iterator[browser.Page]:
    try:
        with browser.opened() as opened:
            yield opened
    except browser.DoesNotStartError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", ["pictures", "rows", "bare", "endless"])
@pytest.mark.parametrize("width", [320, 390, 740, 810, 1280])
def test_nothing_sticks_out(
    page: browser.Page, pages: dict[str, str], name: str, width: int
) -> None:
    page.open(pages[name], width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    # Not innerWidth: a phone's grows with what sticks out.
    beyond = """[...document.querySelectorAll('body *')].filter(e => {
        const box = e.getBoundingClientRect();
        return box.width > 1 && (box.right > WIDTH + 1 || box.left < -1);
    }).map(e => e.outerHTML.slice(0, 200))"""
    assert page.evaluate(beyond.replace("WIDTH", str(width))) == []


@pytest.mark.parametrize("name", ["pictures", "bare", "many"])
def test_text_of_plots_does_not_overlap_and_is_not_cut(
    page: browser.Page, pages: dict[str, str], name: str
) -> None:
    """In the browser's font, which is not the one that matplotlib measured."""
    page.open(pages[name], 1280)
    clashes = """[...document.querySelectorAll('svg')].flatMap(svg => {
        const frame = svg.getBoundingClientRect();
        const texts = [...svg.querySelectorAll('text')].map(
            t => [t.textContent, t.getBoundingClientRect()]);
        const cut = texts.filter(([_, b]) => b.left < frame.left - 1 || b.right > frame.right + 1
            || b.top < frame.top - 1 || b.bottom > frame.bottom + 1).map(([t, _]) => 'cut: ' + t);
        const met = texts.flatMap(([s, a], i) => texts.slice(i + 1).filter(([_, b]) =>
            Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
            Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4
        ).map(([t, _]) => s + ' meets ' + t));
        return [...cut, ...met];
    })"""
    assert page.evaluate(clashes) == []


def test_no_request_leaves_the_page(page: browser.Page, pages: dict[str, str]) -> None:
    page.requests.clear()
    page.messages.clear()
    page.open(pages["pictures"], 1280)
    assert page.requests[0] == pages["pictures"]
    assert all(url.startswith("data:") for url in page.requests[1:])
    assert page.messages == [], "the browser has something to say"
    assert page.evaluate("document.title").startswith("Pictures ")
    shown = "[...document.images].every(i => i.complete && i.naturalWidth > 0)"
    assert page.evaluate(shown)
    assert page.evaluate("document.images.length") > 0


def test_dark_is_dark_and_text_stands_out(page: browser.Page, pages: dict[str, str]) -> None:
    """Contrast of WCAG AA, 4.5 to 1, for text on the page, on cards and in plots."""
    contrast = """(() => {
        const light = c => {
            const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map(v => v / 255).map(
                v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const style = (s, p) => getComputedStyle(document.querySelector(s))[p];
        const paper = light(style('body', 'backgroundColor'));
        const card = light(style('.cards > div', 'backgroundColor'));
        const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        return [paper, ratio(light(style('body', 'color')), paper),
            ratio(light(style('.cards .small', 'color')), card),
            ratio(light(style('figcaption', 'color')), paper),
            ratio(light(style('svg text', 'fill')), paper)];
    })()"""
    for dark in (False, True):
        page.open(pages["bare"], 1280, dark=dark)
        paper, *ratios = page.evaluate(contrast)
        assert (paper < 0.1) == dark
        assert min(ratios) >= 4.5


def test_paper_is_white_though_the_screen_is_dark(
    page: browser.Page, pages: dict[str, str], tmp_path: Path
) -> None:
    page.open(pages["pictures"], 1280, dark=True)
    page.pdf(tmp_path / "out.pdf")  # leaves the page as a printer sees it
    assert (tmp_path / "out.pdf").read_bytes().startswith(b"%PDF")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
