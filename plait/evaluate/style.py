"""How pictures look: fonts, bare axes, shortened names."""

from __future__ import annotations

import io
import unicodedata
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
GREY, PALE = "#767676", "#E4E4E4"
FALLBACKS = [
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans JP",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "PingFang SC",
    "Hiragino Sans",
    "Apple SD Gothic Neo",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "Arial Unicode MS",
]


def shorten(label: object, width: int) -> str:
    """One clean line of at most `width` columns (wide characters count two); what is cut off is shown by an
    ellipsis."""
    text = str(label).encode("utf-8", "replace").decode("utf-8")
    text = " ".join("".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in text).split())
    used, out = 0, []
    wide = [2 if unicodedata.east_asian_width(c) in "WF" else 0 if unicodedata.combining(c) else 1 for c in text]
    if sum(wide) <= width:
        return text
    for c, size in zip(text, wide):
        if used + size > width - 1:
            break
        used += size
        out.append(c)
    return "".join(out).rstrip() + "…"


def wrap(text: str, width: int, most: int) -> str:
    lines, rest = [], shorten(text, width * most - 2)
    while rest and len(lines) < most:
        piece = rest if len(rest) <= width else rest[:width].rsplit(" ", 1)[0]
        lines.append(piece)
        rest = rest[len(piece) :].lstrip()
    return "\n".join(lines[:-1] + [lines[-1] + "…" if rest else lines[-1]]) if lines else ""


def new_figure(width: float, height: float, **how: Any) -> Figure:
    """An empty one, in inches."""
    from matplotlib.figure import Figure  # here: it takes a while to import, and most commands draw nothing

    return Figure(figsize=(width, height), **how)


def bare_axes(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=PALE, linewidth=0.7)
    axes.set_axisbelow(True)


@lru_cache(maxsize=1)
def families() -> list[str]:
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in FALLBACKS if name in installed)]


def png(figure: Figure) -> bytes:
    """The figure as PNG bytes. Labels are drawn as they stand ($ is no formula); a character that no font has becomes a
    box."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_fontfamily(families())
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(out, format="png", dpi=DPI)
    return out.getvalue()
