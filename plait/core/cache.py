"""What of published weights lies on this machine: in the caches of the hub and of `plait.core.fetch.url_file`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from plait.core.catalog import systems
from plait.core.fetch import url_place


class Held(NamedTuple):
    """A repository or a file of the cache. names: the sizes whose weights it holds; none, where only the words of
    others lie there, or nobody's row names it. remove: takes it away."""

    names: tuple[str, ...]
    where: str
    licence: str
    size: int
    remove: Callable[[], None]


def held() -> list[Held]:
    """All of it, the largest first; of the hub's cache, which others fill too, what some row names."""
    return sorted([*_hub(), *_urls()], key=lambda h: (-h.size, h.where))


def _hub() -> list[Held]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    ours, words = _rows("hub"), _words()
    try:
        found = scan_cache_dir()
    except CacheNotFound:
        return []
    out = []
    for repo in found.repos:
        if repo.repo_type == "model" and (repo.repo_id in ours or repo.repo_id in words):
            names, licence = _told(ours.get(repo.repo_id, {}))
            gone = found.delete_revisions(*(r.commit_hash for r in repo.revisions))
            out.append(Held(names, repo.repo_id, licence, repo.size_on_disk, gone.execute))
    return out


def _urls() -> list[Held]:
    rows = _rows("url")
    places = {url_place(url): url for url in rows}
    folder = url_place("").parent
    files = sorted(p for p in folder.iterdir() if p.suffix != ".part") if folder.is_dir() else []
    out = []
    for path in files:
        url = places.get(path, "")
        names, licence = _told(rows.get(url, {}))
        remove = partial(Path.unlink, path)
        out.append(Held(names, url or path.name.partition("-")[2], licence, path.stat().st_size, remove))
    return out


def _told(rows: dict[str, dict]) -> tuple[tuple[str, ...], str]:
    return tuple(rows), ", ".join(dict.fromkeys(row.get("licence", "unknown") for row in rows.values()))


def _rows(key: str) -> dict[str, dict[str, dict]]:
    """{address: {size: its weights row}} of all rows that have the address `key`."""
    found: dict[str, dict[str, dict]] = {}
    for system in systems().values():
        for size, row in (system.weights | system.tags).items():
            if key in row:
                found.setdefault(row[key], {})[f"{system.name}_{size}"] = row
    return found


def _words() -> set[str]:
    """The repositories whose tokenizers rows name."""
    rows = (row for system in systems().values() for row in system.weights.values())
    return {"/".join(row["tokenizer"].split("/")[:2]) for row in rows if "tokenizer" in row}
