"""What `mkdocs build` is told beside mkdocs.yml: every system's page, and what to do with links into the code."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?:plait|tests|benchmarks|examples|CONTRIBUTING|README)[^)]*\)")


def on_config(config):
    for entry in config.nav:
        if isinstance(entry, dict) and "Systems" in entry:
            entry["Systems"] += sorted(
                f"systems/{p.name}" for p in (HERE / "systems").glob("*.md") if p.stem != "README"
            )
    return config


def on_page_markdown(markdown, **_):
    """The code is no part of the site: a link to it becomes its name."""
    return OUTSIDE.sub(r"`\1`", markdown)
