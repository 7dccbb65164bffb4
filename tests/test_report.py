"""The page of a report: what stands in it, whether it is whole, safe and right."""

# ruff: noqa: E402  the imports follow the skips

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

for _extra in ("matplotlib", "jinja2", "PIL"):
    pytest.importorskip(_extra)

from PIL import Image

from siamcuda.report import numbers
from siamcuda.report.figures import LIGHT, draw
from siamcuda.report.page import render, write_page
from siamcuda.report.pngs import write_pngs
from siamcuda.report.samples import Samples
from siamcuda.report.summary import asked_rates, key_figures, operating_points
from siamcuda.verification import Calibrator, VerificationReport, evaluate, from_distances

FAR = (0.1, 0.01)
VOID = {"br", "img", "meta"}
HOSTILE = "<script>alert(1)</script>\"'& \0\udc80</title>"


@pytest.fixture(autouse=True)
def nothing_warns() -> Iterator[None]:
    """matplotlib and numpy warn of what a reader would see as a broken plot."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def clouds(rows: int = 60, people: int = 12, noise: float = 0.7) -> tuple[torch.Tensor, list[str]]:
    generator = torch.Generator().manual_seed(0)
    person = torch.arange(rows) % people
    centres = torch.randn(people, 8, generator=generator)
    embeddings = centres[person] + noise * torch.randn(rows, 8, generator=generator)
    return embeddings, [f"person {n}" for n in person.tolist()]


def verified(**options: object) -> tuple[VerificationReport, Samples]:
    embeddings, names = clouds()
    labels = torch.arange(60) % 12
    report = evaluate(embeddings, labels, far=FAR, metric="cosine", **options)  # type: ignore[arg-type]
    return report, Samples(names, None, 8, "float32", "clouds.npy")


class Document(HTMLParser):
    """Tags that open and close in order, what stands in them, and every attribute."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.values: list[float] = []  # of <data>, in order
        self.feed(text)
        self.close()
        assert self.open == [], "tags that are never closed"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        assert len(found) == len(attributes), (tag, attributes)
        self.tags.append((tag, found))
        if tag == "data":
            self.values.append(float(found["value"] or ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


# what stands in it


def test_a_full_report_has_every_part() -> None:
    report, samples = verified(bootstrap=64)
    calibrator = Calibrator.fit(report)
    page = render(report, far=FAR, samples=samples, calibrator=calibrator, title="Clouds")
    document = Document(page)
    text = " ".join(" ".join(document.text).split())
    for part in (
        "Clouds", "60 embeddings of 12 identities", "120 genuine and 1,650 impostor pairs",
        "8 columns of float32, from clouds.npy", "cosine distance", "every number exact",
        "Equal error rate", "AUC", "Minimum Cllr", "Actual Cllr", "Rank 1",
        "Operating points", "FAR asked", "Hardest pairs", "95 % interval", "64 samples",
        "ROC:", "DET:", "CMC:", "Open-set", "Distances of genuine", "Similarity against distance",
        "Reliability", "1 in 10", "NaN distances none",
    ):  # fmt: skip
        assert part in text, part
    left_out = text.split("Not in this report")[1]
    assert left_out.startswith(" Pictures of the hardest pairs: no images were given. Made by")
    assert len(document.of("svg")) == 7
    titles = {a.get("id"): a for a in document.of("title")}
    for picture in document.of("svg"):
        assert picture["role"] == "img"
        assert picture["aria-labelledby"] in titles
    heads = document.of("th")
    assert heads
    assert all(a.get("scope") in ("col", "row") for a in heads)
    ids = [a["id"] for _, a in document.tags if "id" in a]
    assert len(ids) == len(set(ids)), "ids of several plots are one"


def test_numbers_of_the_page_are_those_of_the_report() -> None:
    report, samples = verified(bootstrap=64)
    calibrator = Calibrator.fit(report, "isotonic")
    document = Document(render(report, far=FAR, samples=samples, calibrator=calibrator))
    assert report.confidence is not None
    expected = [report.eer, report.auc, report.d_prime, report.min_cllr, report.cllr(calibrator)]
    expected += [float(report.cmc(1)[0])]
    for far in (None, *FAR):
        at = report.eer_threshold if far is None else report.threshold(far)
        accepted, rejected = report.rates(at)
        ends = report.confidence.eer if far is None else report.confidence.frr[far]
        expected += [] if far is None else [far]
        expected += [at, accepted, accepted * report.impostor, rejected, rejected * report.genuine]
        expected += [*ends, 1 - rejected]
        if far is not None:
            assert rejected == report.frr(far)
    for hardest in (report.hardest_impostor, report.hardest_genuine):
        assert hardest is not None
        expected += hardest.distance.tolist()
    assert document.values == pytest.approx(expected, rel=1e-15, abs=0)


def test_a_threshold_can_be_used_as_it_is_printed() -> None:
    report, _ = verified()
    for point in operating_points(report, FAR):
        read = np.float32(point.threshold.text)
        assert float(read) == point.threshold.exact
        assert report.rates(float(read)) == (point.far.exact, point.frr.exact)


def test_rates_near_0_and_1_keep_their_digits() -> None:
    written = {0.0: "0 %", 1.0: "100 %", 0.99987: "99.9870 %", 0.5: "50.0 %", 3e-7: "0.0000300 %"}
    for value, text in written.items():
        assert numbers.percent(value).text.replace("\N{NO-BREAK SPACE}", " ") == text
    assert numbers.percent(math.nan).text == "not a number"
    assert numbers.fraction(0.9999877).text == "0.9999877"
    assert numbers.chosen(1e-7).text == "0.00001\N{NO-BREAK SPACE}%"
    assert [numbers.one_in(*c) for c in ((0, 9), (1, 9), (2, 9), (3, 9_000_000))] == [
        "none of 9", "1 in 9", "1 in 4.5", "1 in 3,000,000",
    ]  # fmt: skip


def test_what_is_missing_is_said() -> None:
    page = render(from_distances([0.1, 0.4], [0.3, 0.8]), far=0.5)
    text = " ".join("".join(Document(page).text).split())
    assert "how many was not said" in text
    for part in ("Confidence intervals: no", "Identification (", "Calibration (", "Hardest pairs:"):
        assert part in text.split("Not in this report")[1], part
    assert "no confidence interval was asked for" in text
    assert "not computed" in text
    assert "Fewer than 30 false accepts or false rejects" in text


def test_binned_reports_say_so() -> None:
    embeddings, _ = clouds(3000, 300)
    report = evaluate(embeddings, torch.arange(3000) % 300, far=FAR, identification=False)
    assert report.binned
    text = "".join(Document(render(report, far=(0.1, 0.02))).text)
    assert "curves from bins" in text
    assert f"the AUC is off by at most {report.auc_error:.1g}" in text
    assert "from bins, an upper bound" in text
    inexact = [far for far in (0.1, 0.02) if not report.is_exact(far)]
    assert inexact == [0.02]
    assert len(re.findall("‡", text)) == 2  # at one threshold and at what it means


def test_nan_distances_are_counted() -> None:
    embeddings, _ = clouds()
    embeddings[3] = math.nan
    report = evaluate(embeddings, torch.arange(60) % 12, far=FAR)
    assert (report.genuine_nan, report.impostor_nan) == (4, 55)
    page = render(report, far=FAR)
    assert "4 genuine and 55 impostor distances: never accepted" in page


@pytest.mark.parametrize(
    ("genuine", "impostor"),
    [
        ([0.1], [0.1]),
        ([0.1, math.inf], [0.3, math.nan]),
        ([math.inf], [math.inf]),
        ([math.nan], [0.3]),
        ([0.0], [1.0]),
        ([3.0, 4.0], [1.0, 2.0]),
        ([1e-30, 2e30], [1.0]),
    ],
)
def test_odd_reports_have_a_page(genuine: list[float], impostor: list[float]) -> None:
    for far in (None, (), (0.0, 1.0)):
        report = from_distances(genuine, impostor)
        document = Document(render(report, far=far))
        assert any(v == report.eer for v in document.values)
    if not any(map(math.isfinite, genuine + impostor)):
        assert "no distance is finite" in "".join(document.text)


def test_everybody_at_one_point_has_a_page() -> None:
    report = evaluate(torch.ones(8, 3), torch.arange(8) // 2)
    page = render(report, calibrator=Calibrator.fit(report))
    assert "100 %" in page
    (plot, *_), _ = draw(report, FAR)
    bars = [patch.get_data() for patch in plot.figure.axes[0].patches]
    assert [bar.values.tolist() for bar in bars] == [[100.0]] * 4, "each kind's area and outline"
    assert all(bar.edges[0] < 0 < bar.edges[1] for bar in bars)


def test_queries_without_mates_are_said() -> None:
    embeddings, _ = clouds()
    labels = torch.arange(60) % 12
    report = evaluate(
        embeddings, labels, gallery=embeddings[:3], gallery_labels=torch.tensor([0, 0, 99])
    )
    page = render(report, samples=Samples(labels.tolist()), gallery=Samples([0, 0, 99]))
    assert "60 embeddings of 12 identities against 3 of 2" in page
    assert "55 queries have no mate" in page
    assert "gallery row" in page


def test_asked_rates_default_to_those_of_the_intervals() -> None:
    report, _ = verified(bootstrap=64)
    assert asked_rates(report, None) == FAR
    assert asked_rates(report, [0.001, 0.5, 0.001]) == (0.5, 0.001)
    figures = {f.name: f for f in key_figures(report)}
    assert "Actual Cllr" not in figures
    assert figures["Rank 1"].note == "of 60 queries"


# whole, safe


def test_the_page_stands_alone() -> None:
    report, samples = verified()
    page = render(report, samples=samples, calibrator=Calibrator.fit(report))
    document = Document(page)
    assert not re.search(r"https?:|//\w", page)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {
        t for t, _ in document.tags
    }
    for tag, attributes in document.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href"):
                assert (value or "").startswith(("data:", "#")), (tag, value)
    for address in re.findall(r"url\(([^)]*)\)", page):
        assert address.startswith("#")
    used = set(re.findall(r"url\(#([^)]*)\)", page)) | {
        (a.get("href") or "")[1:] for t, a in document.tags if t == "use"
    }
    assert used <= {a.get("id") for _, a in document.tags}, "a plot refers to what is not there"
    policy = [a["content"] for a in document.of("meta") if "http-equiv" in a]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_the_page_is_html5() -> None:
    html5lib = pytest.importorskip("html5lib")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report, samples = verified(bootstrap=64)
        for page in (
            render(report, samples=samples, calibrator=Calibrator.fit(report)),
            render(from_distances([0.1], [0.2]), title=HOSTILE),
        ):
            text = page.encode(errors="replace").decode()
            html5lib.HTMLParser(strict=True).parse(text)  # raises at the first error


def test_colours_follow_the_scheme_of_the_screen() -> None:
    report, _ = verified()
    page = render(report)
    drawn = page[page.index("</style>") :]
    for name, colour in LIGHT.items():
        assert colour not in drawn
        assert f"var(--{name})" in drawn
    assert "prefers-color-scheme: dark" in page
    assert not re.search(r"(fill|stroke): #(?!fff)", drawn), "a colour of no scheme"


def test_hostile_names_are_text(tmp_path: Path) -> None:
    embeddings, _ = clouds()
    report = evaluate(embeddings, torch.arange(60) % 12)
    picture = tmp_path / "\"><img src=x onerror='alert(1)'>&\udc80.png"
    Image.new("L", (8, 8)).save(picture)
    samples = Samples([HOSTILE] * 60, [picture] * 60, source=HOSTILE)
    path = tmp_path / "out.html"
    write_page(path, report, samples=samples, title=HOSTILE)
    page = path.read_bytes().decode()
    assert "<script" not in page
    assert "\0" not in page
    document = Document(page)
    assert not [a for _, a in document.tags if "onerror" in a]
    assert all((a["src"] or "").startswith("data:image/png;base64,") for a in document.of("img"))
    assert len(document.of("img")) == 64
    text = "".join(document.text)
    assert text.count("<script>alert(1)</script>\"'& \ufffd\ufffd</title>") >= 64


def test_pictures_are_shown_small_and_broken_ones_named(tmp_path: Path) -> None:
    embeddings, _ = clouds()
    report = evaluate(embeddings, torch.arange(60) % 12, hardest=4)
    files = [tmp_path / f"{row}.png" for row in range(60)]
    for row, path in enumerate(files):
        Image.effect_noise((1000, 500), 9).save(path) if row % 2 else path.write_bytes(b"no")
    page = render(report, samples=Samples([""] * 60, files))
    document = Document(page)
    assert report.hardest_genuine is not None
    assert report.hardest_impostor is not None
    rows = np.concatenate([report.hardest_genuine.pairs, report.hardest_impostor.pairs]).ravel()
    assert len(document.of("img")) == int((rows % 2).sum()) > 0
    assert all((a["src"] or "").startswith("data:image/jpeg") for a in document.of("img"))
    assert "".join(document.text).count("cannot be read") == int((rows % 2 == 0).sum()) > 0
    assert len(page) < 400_000


def test_images_are_one_a_row() -> None:
    with pytest.raises(ValueError, match=r"images: one for each row is expected, got 1 for 2 rows"):
        Samples(["a", "b"], [Path("a.png")])


def test_a_page_that_fails_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.html"
    report = from_distances([0.1], [0.2])
    write_page(path, report)
    before = path.read_bytes()

    def fail(_handle: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_page(path, report, title="another")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# plots


def test_plots_are_png_files_too(tmp_path: Path) -> None:
    report, _ = verified()
    assert [p.name for p in write_pngs(tmp_path, report, names=["roc"])] == ["roc.png"]
    paths = write_pngs(tmp_path, report, far=FAR, calibrator=Calibrator.fit(report))
    names = ["histogram", "roc", "det", "cmc", "open_set", "similarity", "reliability"]
    assert [p.name for p in paths] == [f"{name}.png" for name in names]
    for path in paths:
        with Image.open(path) as image:
            image.load()
            assert image.size == (720, 555)


def test_curves_are_drawn_where_the_report_has_them() -> None:
    report, _ = verified()
    plots = {p.name: p for p in draw(report, FAR)[0]}
    (step,) = [line for line in plots["roc"].figure.axes[0].lines if len(line.get_xdata()) > 1]
    far, tar = (np.asarray(v) / 100 for v in step.get_data())
    for rate in FAR:
        at = int(np.searchsorted(far, rate, side="right")) - 1
        assert tar[at] == pytest.approx(report.tar(rate), abs=2e-3)
    cmc = plots["cmc"].figure.axes[0].lines[0]
    assert np.asarray(cmc.get_ydata()) == pytest.approx(100 * report.cmc(20))
    normal = torch.distributions.Normal(0.0, 1.0)
    marks = {str(line.get_label()): line for line in plots["det"].figure.axes[0].lines}
    eer = next(line for name, line in marks.items() if name.startswith("EER"))
    assert float(np.asarray(eer.get_xdata())[0]) == pytest.approx(
        float(normal.icdf(torch.tensor(report.eer))), abs=1e-5
    )
    lines = plots["histogram"].figure.axes[0].lines
    assert [float(np.asarray(line.get_xdata())[0]) for line in lines] == pytest.approx(
        [report.threshold(far) for far in FAR]
    )


def test_a_large_curve_is_drawn_with_few_points() -> None:
    generator = np.random.default_rng(0)
    report = from_distances(generator.normal(1, 0.3, 50_000), generator.normal(2, 0.3, 200_000))
    plots, _ = draw(report, FAR)
    roc = plots[1].figure.axes[0].lines[0]
    assert 100 < len(roc.get_xdata()) < 4_000
    assert len(render(report)) < 300_000
