"""The report parses, needs nothing from outside, escapes what users wrote, and replaces the old file whole or not at
all."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from plait.errors import DataError
from plait.evaluate.intervals import Score
from plait.evaluate.report import Example, Examples, Section, Table, write_report

EVIL = "<script>alert('x')</script> & \"quoted\" <img src=http://evil.example/x.png onerror=y>"
VOID = {"meta", "img", "br", "link", "input"}


def png(colour=(200, 30, 30)):
    out = io.BytesIO()
    Image.new("RGB", (32, 24), colour).save(out, "PNG")
    return out.getvalue()


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed in order."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.links, self.text, self.open, self.handlers = [], [], [], [], []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [
            value for key, value in attrs if key in ("src", "href", "srcset", "data", "action", "poster", "background")
        ]
        self.handlers += [key for key, _ in attrs if key.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text.append(data)


def full(tmp_path):
    facts = {
        "title": EVIL,
        "command": f"plait fit {EVIL}",
        "version": "0.1.0",
        "date": "2026-01-02",
        "seed": 0,
        "machine": EVIL,
        "scores": [Score("accuracy", 0.871, 0.842, 0.897, 400, "higher"), Score(EVIL, 0.4, 0.3, 0.5, 400, "lower")],
        "baseline": {"accuracy": ("majority " + EVIL, 0.52)},
    }
    sections = [
        Section(EVIL, "text", f"one {EVIL}\n\ntwo 漢字 \ud800"),
        Section("Log", "lines", [EVIL, "epoch 2"]),
        Section(
            "Scores",
            "table",
            Table(
                ["label", EVIL],
                [
                    [EVIL, np.float32(0.25)],
                    ["none", None],
                    [True, np.int64(3)],
                    [Score("s", 0.5, 0.4, 0.6, 9, "higher"), 12345],
                ],
            ),
        ),
        Section("Picture", "picture", [(png(), EVIL), png((1, 2, 3))]),
        Section(
            "Rows",
            "examples",
            Examples(
                [EVIL, "photo"],
                [Example([EVIL, png()], EVIL, "slow", 0.61, False), Example(["b", None], "slow", "slow", None, True)],
            ),
        ),
    ]
    path = tmp_path / "deep" / "report.html"
    write_report(path, facts, sections)
    return path, path.read_text(encoding="utf-8")


def test_the_report_is_one_file_that_asks_for_nothing(tmp_path):
    path, source = full(tmp_path)
    page = Page(source)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    assert not {"script", "link", "iframe", "object", "form", "base"} & set(page.tags) and page.handlers == []
    assert len(page.links) == 3 and all(link.startswith("data:image/png;base64,") for link in page.links)
    style = source[source.index("<style>") : source.index("</style>")]
    assert (
        "url(" not in style
        and "@import" not in style
        and "prefers-color-scheme:dark" in style
        and "@media print" in style
    )
    assert "default-src 'none'" in source and 'name="viewport"' in source


def test_user_text_is_escaped_and_readable(tmp_path):
    _, source = full(tmp_path)
    assert "<script" not in source and "<img src=http" not in source
    text = "".join(Page(source).text)
    assert text.count(EVIL) >= 12  # title twice, command, machine, score, baseline, and each section
    for shown in (
        "0.871",
        "95% interval 0.842 to 0.897",
        "0.520",
        "0.50 [0.40, 0.60]",
        "12,345",
        "0.610",
        "missing",
    ):
        assert shown in text, shown
    assert "✗ wrong" in text and "✓ right" in text


def test_pictures_come_back_as_they_were(tmp_path):
    _, source = full(tmp_path)
    first = Image.open(io.BytesIO(base64.b64decode(Page(source).links[0].split(",", 1)[1])))
    assert first.size == (32, 24) and first.getpixel((3, 3)) == (200, 30, 30)


@pytest.mark.parametrize(
    "facts, section, message",
    [
        ({}, Section("a", "text", ""), "add a title"),
        ({"title": "t", "secret": 1}, Section("a", "text", ""), "move secret"),
        ({"title": "t"}, Section("a", "video", ""), "'video'"),
        ({"title": "t"}, Section("a", "picture", b"GIF89a"), "expected a PNG or a JPEG"),
        ({"title": "t"}, Section("a", "table", Table(["x", "y"], [[1]])), "row of 1 cells, expected 2"),
        (
            {"title": "t"},
            Section("a", "examples", Examples(["x"], [Example([], "t", "a", 0.5, True)])),
            "example of 0 cells",
        ),
        ({"title": "t"}, Section("a", "lines", "text"), "expected a list"),
    ],
)
def test_mistakes_are_named_and_the_old_report_stays(tmp_path, facts, section, message):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(ValueError, match=message):
        write_report(path, facts, [section])
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_failed_replacement_leaves_no_temporary_file(tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(DataError, match="cannot write .*report.html: Is a directory"):
        write_report(tmp_path / "report.html", {"title": "t"}, [])
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_short_report_needs_only_a_title(tmp_path):
    write_report(tmp_path / "r.html", {"title": "t"}, [])
    assert Page((tmp_path / "r.html").read_text()).tags.count("h1") == 1
