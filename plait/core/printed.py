"""What of the user's data may be printed: names and cells are theirs, and a terminal obeys what it is sent."""

from __future__ import annotations

JOINERS = "\u200c\u200d"  # of Persian, of Indic scripts and of emoji: they move nothing


def clean(text: object) -> str:
    """A text without control characters and direction marks, which could drive the terminal or turn what stands around
    them; blanks of all kinds are blanks."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in JOINERS else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text
    )
