"""The report of a run: one HTML file that needs nothing else. Style inside, pictures as data URIs, no scripts; it opens
offline, prints, and follows the reader's light or dark setting."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from plait.core.files import write_whole
from plait.errors import PlaitError
from plait.evaluate.charts import Chart, svg
from plait.evaluate.intervals import Score, digits, number

LARGE = 900  # pixels, beyond which a picture is scrolled on a narrow screen, since its letters would vanish
FACTS = {"title", "command", "version", "date", "seed", "machine", "scores", "baseline", "beside", "how"}


class Section(NamedTuple):
    """One part of the report. `kind` says what `body` is:

    table     a `Table`
    picture   PNG or JPEG bytes, or (bytes, caption), or a list of these
    text      a str; blank lines separate paragraphs
    lines     a list of str, shown as they stand in a fixed-width face
    examples  an `Examples`
    chart     a list of `plait.evaluate.charts.Chart`"""

    title: str
    kind: str
    body: Any


class Table(NamedTuple):
    """Column names and rows of cells. Numbers are set at the right with three decimals, a `Score` with its interval
    and as many digits as that tells, None as a dash. note: what stands below it."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""


class Example(NamedTuple):
    """One row of the data with its answer. cells: text, or PNG or JPEG bytes, or None (missing), one for each of
    `Examples.columns`."""

    cells: Sequence[object]
    truth: object
    answer: object
    probability: float | None
    right: bool | None


class Examples(NamedTuple):
    """Names of the input columns and the rows shown."""

    columns: Sequence[str]
    rows: Sequence[Example]


def write_report(path: str | Path, facts: dict, sections: Sequence[Section]) -> None:
    """Writes the report to `path` whole or not at all (a temporary file beside it takes its place at the end).

    facts: "title" and, as far as they are known, "command", "version", "date", "seed", "machine" (text or numbers),
    "scores" (list of `Score`, shown as big figures) and "baseline" ({score name: (what it is, its value)}, such as
    {"accuracy": ("majority", 0.52)}) "beside" (what must stand beside each score) and "how" (they came about).
    Everything is escaped. Raises ValueError for an unknown fact or kind, or picture bytes that are neither PNG nor
    JPEG."""
    unknown = sorted(set(facts) - FACTS)
    if unknown or "title" not in facts:
        raise PlaitError(
            f"got facts {sorted(facts)}, expected 'title' and any of {sorted(FACTS - {'title'})}; "
            f"{'move ' + ', '.join(unknown) + ' to a section' if unknown else 'add a title'}"
        )
    strange = [section.kind for section in sections if section.kind not in DRAW]
    if strange:
        raise PlaitError(f"got a section of kind {strange[0]!r}, expected one of {', '.join(DRAW)}")
    parts = [f"<section><h2>{_text(s.title)}</h2>{DRAW[s.kind](s.body)}</section>" for s in sections]
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; style-src '
        "'unsafe-inline'\">"
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{_text(facts["title"])}</title>'
        f"<style>{STYLE}</style></head>\n<body><main>{_header(facts)}\n" + "\n".join(parts) + "</main></body></html>\n"
    )
    write_whole(path, lambda part: part.write_bytes(page.encode("utf-8", "replace")))


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _header(facts: dict) -> str:
    out = [f"<header><h1>{_text(facts['title'])}</h1>"]
    if facts.get("command"):
        out.append(f'<pre class="command">{_text(facts["command"])}</pre>')
    if facts.get("scores"):
        baseline = facts.get("baseline") or {}
        out.append(
            '<div class="scores">'
            + "".join(_figure(score, baseline.get(score.name), facts.get("beside", "")) for score in facts["scores"])
            + "</div>"
        )
        if facts.get("how"):
            out.append(f'<p class="how">{_text(facts["how"])}</p>')
    known = [
        (name, facts[key])
        for name, key in (("plait", "version"), ("date", "date"), ("seed", "seed"), ("machine", "machine"))
        if facts.get(key) is not None
    ]
    if known:
        out.append(
            '<p class="facts">'
            + " ".join(f"<span><b>{name}</b> {_text(value)}</span>" for name, value in known)
            + "</p>"
        )
    return "".join(out) + "</header>"


def _figure(score: Score, baseline: tuple[str, float] | None, beside: str) -> str:
    """One big figure: value, interval, baseline, and for a score between 0 and 1 a track that shows all three."""
    value, low, high = digits(score)
    out = [
        f'<div class="score"><div class="name">{_text(score.name)}</div><div class="value">{value}</div>',
        f'<div class="interval">95% interval {low} to {high}</div>',
    ]
    if 0 <= score.low and score.high <= 1 and score.better == "higher":
        tick = f'<i style="left:{100 * baseline[1]:.2f}%"></i>' if baseline and 0 <= baseline[1] <= 1 else ""
        out.append(
            f'<div class="track" aria-hidden="true"><span style="left:{100 * score.low:.2f}%;width:'
            f'{100 * (score.high - score.low):.2f}%"></span>{tick}<b style="left:{100 * score.value:.2f}%"></b></div>'
        )
    about = f"{_text(baseline[0])} {number(baseline[1])} · " if baseline else ""
    out.append(f'<div class="about">{about}{score.n:,} rows · {_text(score.better)} is better</div>')
    out.append(f'<div class="about beside">{_text(beside)}</div></div>' if beside else "</div>")
    return "".join(out)


def _cell(value: object) -> str:
    if value is None:
        return '<td class="none">–</td>'
    if isinstance(value, Score):
        middle, low, high = digits(value)
        return f'<td class="num">{middle} <span class="soft">[{low}, {high}]</span></td>'
    if isinstance(value, (bool, np.bool_)):
        return f"<td>{'yes' if value else 'no'}</td>"
    if isinstance(value, (int, np.integer)):
        return f'<td class="num">{value:,}</td>'
    if isinstance(value, (float, np.floating)):
        return f'<td class="num">{number(value)}</td>'
    if isinstance(value, (bytes, bytearray)):
        return f'<td class="thumb">{_image(value, "")}</td>'
    return f'<td class="long">{_text(value)}</td>' if len(str(value)) > 40 else f"<td>{_text(value)}</td>"


def _rows(columns: Sequence[str], rows: Sequence[str], right: Sequence[bool]) -> str:
    head = "".join(f'<th class="num">{_text(c)}</th>' if r else f"<th>{_text(c)}</th>" for c, r in zip(columns, right))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="wide" tabindex="0">{table}</div>'


def _table(body: Table) -> str:
    columns, rows, note = body
    uneven = [len(row) for row in rows if len(row) != len(columns)]
    if uneven:
        raise PlaitError(
            f"got a table row of {uneven[0]} cells, expected {len(columns)}, one for each of "
            f"{', '.join(map(str, columns))}"
        )
    cells = [[_cell(value) for value in row] for row in rows]
    right = [bool(cells) and all(row[i].startswith('<td class="n') for row in cells) for i in range(len(columns))]
    below = f'<p class="soft">{_text(note)}</p>' if note else ""
    return _rows(columns, [f"<tr>{''.join(row)}</tr>" for row in cells], right) + below


def _examples(body: Examples) -> str:
    columns, rows = body
    out = []
    for cells, truth, answer, probability, right in rows:
        if len(cells) != len(columns):
            raise PlaitError(
                f"got an example of {len(cells)} cells, expected {len(columns)}, one for each of "
                f"{', '.join(map(str, columns))}"
            )
        mark = (
            "" if right is None else '<span class="ok">✓ right</span>' if right else '<span class="bad">✗ wrong</span>'
        )
        inputs = "".join('<td class="none">missing</td>' if cell is None else _cell(cell) for cell in cells)
        out.append(f"<tr>{inputs}{_cell(truth)}{_cell(answer)}{_cell(probability)}<td>{mark}</td></tr>")
    return _rows([*columns, "truth", "answer", "probability", ""], out, [False] * (len(columns) + 2) + [True, False])


def _image(data: bytes, label: str) -> str:
    kind = "png" if data[:8] == b"\x89PNG\r\n\x1a\n" else "jpeg" if data[:3] == b"\xff\xd8\xff" else None
    if kind is None:
        raise PlaitError(f"got {len(data)} bytes that begin with {bytes(data[:8])!r}, expected a PNG or a JPEG")
    wide = ' class="large"' if kind == "png" and int.from_bytes(data[16:20], "big") > LARGE else ""
    return f'<img{wide} alt="{_text(label)}" src="data:image/{kind};base64,{base64.b64encode(data).decode("ascii")}">'


def _picture(body: object) -> str:
    if isinstance(body, list):
        return "".join(_picture(one) for one in body)
    data, caption = body if isinstance(body, tuple) else (body, "")
    below = f"<figcaption>{_text(caption)}</figcaption>" if caption else ""
    return f'<figure><div class="wide" tabindex="0">{_image(data, caption)}</div>{below}</figure>'


def _charts(body: Sequence[Chart]) -> str:
    return f'<div class="charts">{"".join(svg(chart) for chart in body)}</div>'


def _paragraphs(body: str) -> str:
    return "".join(f"<p>{_text(part.strip())}</p>" for part in str(body).split("\n\n") if part.strip())


def _lines(body: Sequence[str]) -> str:
    if isinstance(body, str):
        raise PlaitError("got one text as lines, expected a list of them; use kind 'text' or splitlines()")
    return f'<pre tabindex="0">{_text(chr(10).join(map(str, body)))}</pre>'


DRAW = {
    "table": _table,
    "picture": _picture,
    "text": _paragraphs,
    "lines": _lines,
    "examples": _examples,
    "chart": _charts,
}

STYLE = """
:root{color-scheme:light
dark;--page:#fff;--ink:#1b1f24;--soft:#59636e;--line:#d8dee4;--box:#f6f8fa;--blue:#0067a3;--orange:#b04a00} @media
(prefers-color-scheme:dark){:root{--page:#101418;--ink:#e6e9ec;--soft:#9aa5b1;--line:#2c343c;--box:#181e24;
--blue:#6bb8ec;--orange:#f0955a}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto
Sans",sans-serif} main{max-width:62rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.8rem;line-height:1.2;margin:.5rem 0 1rem;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:0 0 .7rem;overflow-wrap:anywhere}
section{margin-top:2.2rem;padding-top:1.2rem;border-top:1px solid var(--line)}
p{max-width:46rem;white-space:pre-line;overflow-wrap:anywhere}
pre{background:var(--box);border:1px solid var(--line);border-radius:6px;padding:.7rem .9rem;overflow-x:auto;margin:0;
font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.command{white-space:pre-wrap;overflow-wrap:anywhere}
.facts{color:var(--soft);font-size:.88rem;display:flex;flex-wrap:wrap;gap:.2rem 1.4rem;max-width:none}
.scores{display:grid;grid-template-columns:repeat(auto-fit,minmax(13.5rem,1fr));gap:.8rem;margin:1.1rem 0}
.score{border:1px solid var(--line);background:var(--box);border-radius:8px;padding:.8rem 1rem;break-inside:avoid}
.score .name{color:var(--soft);font-size:.92rem;overflow-wrap:anywhere}
.score .value{font-size:2.3rem;font-weight:650;line-height:1.15;font-variant-numeric:tabular-nums}
.score .interval{font-size:.9rem;font-variant-numeric:tabular-nums}
.score .about{color:var(--soft);font-size:.84rem;margin-top:.35rem;overflow-wrap:anywhere}
.score .beside{color:var(--orange)}
.track{position:relative;height:8px;border-radius:4px;background:var(--line);margin:.55rem 0 .3rem;
print-color-adjust:exact;-webkit-print-color-adjust:exact}
.track span{position:absolute;top:0;height:8px;min-width:3px;border-radius:4px;background:var(--blue);opacity:.5}
.track b{position:absolute;top:-2px;width:3px;height:12px;margin-left:-1px;background:var(--blue)}
.track i{position:absolute;top:-3px;width:0;height:14px;border-left:2px dotted var(--orange)}
.wide{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;font-size:.93rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;vertical-align:top;padding:.4rem .8rem .4rem 0;border-bottom:1px solid var(--line);
max-width:24rem;overflow-wrap:break-word}
td.long{min-width:15rem}
th{color:var(--soft);font-weight:600;white-space:nowrap}
th.num,td.num{text-align:right;white-space:nowrap}
td.none,.soft{color:var(--soft)}
.thumb img{display:block;width:auto;height:auto;min-width:48px;max-width:96px;max-height:96px;border-radius:4px;
background:#fff}
.ok{color:var(--blue);font-weight:600;white-space:nowrap}
.bad{color:var(--orange);font-weight:600;white-space:nowrap}
figure{margin:0 0 1rem;break-inside:avoid}
figure img{display:block;max-width:100%;height:auto;background:#fff;border-radius:8px;padding:.4rem}
figure img.large{min-width:40rem}
.charts{display:flex;flex-wrap:wrap;gap:1rem 2rem}
.chart{flex:1 1 17rem;max-width:26rem;height:auto;font:12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
.chart text{fill:var(--ink)}
.chart path{fill:none}
.chart .grid{stroke:var(--line)}
.chart .guess{stroke:var(--soft);stroke-dasharray:2 4;stroke-width:1.5}
.chart .line{stroke-width:2;stroke-linejoin:round}
.chart .range{stroke:var(--blue);stroke-width:1.5}
.chart circle{fill:var(--blue)}
figcaption{color:var(--soft);font-size:.9rem;margin-top:.3rem}
@media (max-width:34rem){body{font-size:15px}.score .value{font-size:2rem}.scores{grid-template-columns:1fr}}
@media print{:root{color-scheme:light;--page:#fff;--ink:#000;--soft:#444;--line:#bbb;--box:#fff;--blue:#0067a3;
--orange:#b04a00}
main{max-width:none;padding:0}pre{white-space:pre-wrap}.wide{overflow:visible}
tr,h2{break-inside:avoid}h2{break-after:avoid}thead{display:table-header-group}}
"""
