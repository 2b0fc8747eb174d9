from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from visionad_runtime.errors import VisionADError
from visionad_runtime.tools.demo.rendering import render
from visionad_runtime.tools.demo.report import Case, ClassReport, Report, mistake, write_report
from visionad_runtime.visualization import html

EVIL = "\"><script>alert('x')</script><img src=x onerror=1>&"


def noise(height: int = 512, width: int = 512) -> np.ndarray:
    rng = np.random.Generator(np.random.PCG64(0))
    smooth = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return np.repeat(np.repeat(smooth, 8, axis=0), 8, axis=1)


def mask() -> np.ndarray:
    marked = np.zeros((512, 512), dtype=np.bool_)
    marked[100:140, 100:140] = True
    return marked


def case(truth: str | None = "good", verdict: str = "ok", routed: str | None = "bolt", **more: object) -> Case:
    values: dict[str, object] = {
        "image_path": "test/good/000.png",
        "class_name": "bolt",
        "score": 0.2,
        "threshold": 0.5,
        "overlay": noise(),
        "image": noise(),
        "class_margin": 0.1,
    }
    return Case(truth=truth, verdict=verdict, routed_class=routed, **{**values, **more})  # type: ignore[arg-type]


def page(tmp_path: Path, report: Report) -> str:
    write_report(tmp_path / "out" / "report.html", report)
    return (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


class Balance(HTMLParser):
    """Collects start tags and fails on a tag closed out of turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "input", "br", "link"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag


def full(name: str = "bolt") -> Report:
    bad = case("broken_tooth", "anomalous", name, class_name=name, score=0.9, image_path=f"x/{name}/1.png", mask=mask())
    entry = ClassReport(name, [noise(64, 64)] * 4, [bad] * 3, 0.99, 0.97, 0.5)
    facts = [
        ("image AUROC", "0.99"),
        ("routing", "3 of 3"),
        ("an image", "4 ms"),
        ("first verdict", "2 s"),
        ("shots", "4"),
    ]
    return Report("Demo", facts, [entry], {"decode": 1.0, "backbone": 20.0}, ["a note"], ["visionad demo"])


def test_page_is_whole_and_fetches_nothing(tmp_path: Path) -> None:
    text = page(tmp_path, full())
    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    outside_images = re.sub(r'"data:image/jpeg;base64,[A-Za-z0-9+/=]+"', '""', text)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<script|<link|<iframe", outside_images, re.IGNORECASE)
    for _, attributes in parser.tags:
        assert (attributes.get("src") or "data:").startswith("data:image/") or "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
    targets = {attributes["id"] for _, attributes in parser.tags if "id" in attributes}
    assert {(a["href"] or "")[1:] for _, a in parser.tags if "href" in a} <= targets
    assert "prefers-color-scheme:dark" in text
    assert "broken tooth" in text and "threshold 0.5" in text and "visionad demo" in text


def test_equal_reports_give_equal_bytes(tmp_path: Path) -> None:
    assert page(tmp_path / "a", full()) == page(tmp_path / "b", full())


def test_every_text_is_escaped(tmp_path: Path) -> None:
    evil = case(EVIL, EVIL, EVIL, class_name=EVIL, image_path=f"{EVIL}/{EVIL}.png")
    entry = ClassReport(EVIL, [noise(16, 16)], [evil, evil], 0.5, 0.5, 0.5)
    text = page(tmp_path, Report(EVIL, [(EVIL, EVIL)] * 6, [entry], {EVIL: 3.0}, [EVIL], [EVIL]))
    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    assert "<script" not in text
    assert not any("onerror" in attributes or tag == "script" for tag, attributes in parser.tags)


@pytest.mark.parametrize(
    ("truth", "verdict", "routed", "said"),
    [
        ("good", "ok", "bolt", None),
        ("good", "anomalous", "bolt", "false alarm"),
        ("scratch", "anomalous", "bolt", None),
        ("scratch", "ok", None, "missed"),
        ("scratch", "unknown", None, "not recognized"),
        ("scratch", "unknown", "bolt", "no verdict"),  # its class has no threshold
        ("good", "ok", "nut", "routed to nut"),
        ("unknown", "unknown", None, None),
        ("unknown", "ok", "nut", "routed to nut"),
        (None, "anomalous", "bolt", None),  # nobody knows
    ],
)
def test_mistakes_are_named(truth: str | None, verdict: str, routed: str | None, said: str | None) -> None:
    assert mistake(case(truth, verdict, routed)) == said


@pytest.mark.parametrize(
    "report",
    [
        Report("empty", [], [], {}),
        Report("no cases", [("a", "b")], [ClassReport("bolt", [], [])], {"decode": 0.0}),
        Report("bare", [], [ClassReport("bolt", [noise(8, 8)], [case(None, "unknown", None, threshold=None)])], {}),
        Report("odd", [], [ClassReport("bolt", [], [case(score=float("nan")), case(image=noise(8, 4000))])], {}),
        Report("flat", [], [ClassReport("bolt", [], [case(score=0.0, threshold=None)] * 2)], {}),
    ],
    ids=lambda report: report.title,
)
def test_sparse_reports(tmp_path: Path, report: Report) -> None:
    parser = Balance()
    parser.feed(page(tmp_path, report))
    assert parser.open == []


def test_sixty_cases_stay_small(tmp_path: Path) -> None:
    busy, _ = render("pcb", 0)  # the most detailed part
    entry = ClassReport("pcb", [busy] * 8, [case(image=busy, overlay=busy, mask=mask())] * 60)
    assert len(page(tmp_path, Report("sixty", [], [entry], {}))) < 3_000_000


def test_without_jinja_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(VisionADError, match=r"needs jinja2: pip install 'visionad\[eval\]'"):
        html.require_jinja()


def test_a_page_shows_every_value_or_fails() -> None:
    with pytest.raises(Exception, match="'title' is undefined"):
        html.render("demo.html")
