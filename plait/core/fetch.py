"""Published files to this machine, each at most once."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.request
import uuid
from pathlib import Path

import torch

from plait.errors import PlaitError

SILENCE = 30  # seconds without an answer before a server counts as out of reach


def hub_file(hub: str, file: str, revision: str = "main") -> Path:
    """A file of a repository on the Hugging Face hub, from its cache or downloaded. Raises ValueError where it cannot
    be had."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    try:
        return Path(hf_hub_download(hub, file, revision=revision))
    except (OSError, EntryNotFoundError, HfHubHTTPError) as error:
        raise PlaitError(_unreachable(f"https://huggingface.co/{hub}/resolve/{revision}/{file}", error)) from error


def url_file(url: str) -> Path:
    """The file at `url`, from the folder `plait` of torch.hub's cache or downloaded there. Raises ValueError where it
    cannot be had.

    It appears under its name only when it is whole.
    """
    name = url.split("?")[0].rsplit("/", 1)[-1]
    target = Path(torch.hub.get_dir()) / "plait" / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")
    try:
        with urllib.request.urlopen(url, timeout=SILENCE) as answer, part.open("wb") as out:
            while block := answer.read(1 << 20):
                out.write(block)
            said, got = answer.headers.get("Content-Length"), out.tell()
        if said is not None and got != int(said):
            raise OSError(f"the connection ended after {got:,} of {int(said):,} bytes")
        os.replace(part, target)
    except (OSError, http.client.HTTPException) as error:  # refused connections and timeouts are OSErrors
        raise PlaitError(_unreachable(url, error)) from error
    finally:
        part.unlink(missing_ok=True)
    return target


def _unreachable(url: str, error: Exception) -> str:
    reason = str(error).strip().split("\n")[0]
    return (
        f"no weights from {url} ({reason}): without a network, bring the file here another way and give pretrained=PATH"
    )
