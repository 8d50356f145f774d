"""Published files to this machine, each at most once."""

from __future__ import annotations

import hashlib
import http.client
import os
import ssl
import threading
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import torch

from plait.errors import PlaitError

SILENCE = 30  # seconds without an answer before a server counts as out of reach
PATIENCE = 5  # seconds for it to answer at all, names looked up


def hub_file(hub: str, file: str, revision: str = "main", sha256: str | None = None) -> Path:
    """A file of a repository on the Hugging Face hub, from its cache or downloaded. revision: a branch, a tag or a
    commit. Raises ValueError where it cannot be had, at once where there is no network, or is not what it should be."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    where = f"{constants.ENDPOINT}/{hub}/resolve/{revision}/{file}"
    # the hub's own client would try again for half a minute
    why = "offline, by HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else unreached(constants.ENDPOINT)
    try:
        path = Path(hf_hub_download(hub, file, revision=revision, local_files_only=bool(why)))
    except (OSError, EntryNotFoundError, HfHubHTTPError) as error:
        raise PlaitError(_unreachable(where, why or str(error))) from error
    if sha256 is not None and (got := _digest(path)) != sha256:
        raise PlaitError(_other(where, got, sha256))
    return path


def url_file(url: str, sha256: str | None = None) -> Path:
    """The file at `url`, from the folder `plait` of torch.hub's cache or downloaded there. Raises ValueError where it
    cannot be had, or is not what it should be.

    It appears under its name only when it is whole.
    """
    name = url.split("?")[0].rsplit("/", 1)[-1]
    target = Path(torch.hub.get_dir()) / "plait" / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"
    if target.exists() and (sha256 is None or _digest(target) == sha256):
        return target
    if why := unreached(url):
        raise PlaitError(_unreachable(url, why))
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")
    try:
        with urllib.request.urlopen(url, timeout=SILENCE) as answer, part.open("wb") as out:
            while block := answer.read(1 << 20):
                out.write(block)
            said, got = answer.headers.get("Content-Length"), out.tell()
        if said is not None and got != int(said):
            raise OSError(f"the connection ended after {got:,} of {int(said):,} bytes")
        if sha256 is not None and (found := _digest(part)) != sha256:
            raise PlaitError(_other(url, found, sha256))
        os.replace(part, target)
    except (OSError, http.client.HTTPException) as error:  # refused connections and timeouts are OSErrors
        raise PlaitError(_unreachable(url, str(error))) from error
    finally:
        part.unlink(missing_ok=True)
    return target


def unreached(url: str) -> str:
    """Why the server of `url`, or the proxy before it, cannot be reached; "" where it answers, whatever it says."""
    found = [f"no answer within {PATIENCE} s"]

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PATIENCE).close()
            found[0] = ""
        except (urllib.error.HTTPError, ssl.SSLError, http.client.HTTPException):
            found[0] = ""
        except OSError as error:
            reason = getattr(error, "reason", error)
            found[0] = "" if isinstance(reason, ssl.SSLError) else str(getattr(reason, "strerror", None) or reason)

    asking = threading.Thread(target=ask, daemon=True)  # looking up a name has no time limit of its own
    asking.start()
    asking.join(PATIENCE)
    return found[0]


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def _unreachable(url: str, why: str) -> str:
    reason = why.strip().split("\n")[0]
    return (
        f"no weights from {url} ({reason}): without a network, bring the file here another way and give pretrained=PATH"
    )


def _other(url: str, got: str, expected: str) -> str:
    return (
        f"the file from {url} is not the one that was published: its SHA-256 is {got[:12]}…, expected "
        f"{expected[:12]}…: fetch it again, or where it was meant to change, give pretrained=PATH"
    )
