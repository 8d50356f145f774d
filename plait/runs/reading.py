"""Files and texts as published weights were evaluated on them, without a table to learn from: what a weights row says
of pictures, words and sounds, done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from plait.core.catalog import ModelInfo, model_info
from plait.data.kinds import KINDS
from plait.data.kinds.audio import MOST_SECONDS
from plait.data.kinds.text import MOST_CHARACTERS
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.data.table import Table
from plait.errors import DataError, UsageError, nearest
from plait.runs.assemble import cropped, reads
from plait.runs.vocabulary import check_vocabulary, published_tokenizer
from plait.tasks.bind import HALF


def shown(info: ModelInfo) -> dict[str, Any]:
    """What `Schema.fit` is told of how the published weights of a size are shown things: image_size, crop, rate."""
    row, fixed = info.weights, reads(info)
    size = fixed.get("image") or row.get("image")
    return {"image_size": size, "crop": cropped(row), "rate": fixed.get("rate")}


class Reader:
    """Rows of files and texts -> a batch as a model with published weights reads it.

    name: a size with a weights row. image: the (H, W) that its pictures are brought to, where the model was built for
    another size than the row's. tokenizer: its tokenizer.json; True fetches the one that the row names.

        batch = plait.Reader("vit_tiny_patch16_224")(image=["cat.png", "dog.jpg"])
        logits = model(batch["image"])

    Raises UsageError for what the model does not read, and where words cannot be had; DataError for a file that cannot
    be read.
    """

    def __init__(self, name: str, *, image: tuple[int, int] | None = None, tokenizer: str | Path | bool = True):
        self.info = model_info(name)
        if not self.info.weights:
            raise UsageError(f"{self.info.name} has no published weights: nothing says how it is shown things")
        self.how = shown(self.info) | ({"image_size": image} if image else {})
        self.tokenizer = tokenizer

    def __call__(self, **given: Sequence[Any]) -> dict:
        """given: of each modality a list, a row each: paths or bytes of pictures and sounds, texts; None for a row that
        lacks it. All lists are of one length."""
        for name in given:
            if name not in self.info.takes:
                raise UsageError(f"{self.info.name} reads no {name}. {nearest(name, self.info.takes)}")
        if len({len(cells) for cells in given.values()}) != 1:
            counts = ", ".join(f"{len(cells)} of {name}" for name, cells in given.items())
            raise UsageError(f"got {counts or 'nothing'}: give each row one of each")
        columns = {n: [_bytes(c) if KINDS[n].media else c for c in cells] for n, cells in given.items()}
        table = Table(pa.table(columns), None, "what was given")
        schema = Schema.guess(table, kinds={name: name for name in given}, inputs=list(given))
        everything = np.arange(len(table))
        words = self._words() if "text" in given else None
        schema.fit(table, everything, tokenizer_file=words, closed=self.info.weights.get("closed", True), **self.how)
        for column in schema.used("input"):
            self._whole(column.kind, column.params, words)
        rows = Rows(table, schema).scan()
        if rows.bad.cells:
            (row, name), (_, why, _) = next(iter(sorted(rows.bad.cells.items())))
            raise DataError(f"{name} {given[name][row]!r} cannot be read: {why}")
        batch = rows.batch(everything)
        scale = {key: self.info.weights.get(key, HALF) for key in ("mean", "std")}
        for slot in schema.slots:
            batch[slot.kind] = batch.pop(slot.name)
            for beside in ("keep", "present"):
                if slot.name in batch[beside]:
                    batch[beside][slot.kind] = batch[beside].pop(slot.name)
            if KINDS[slot.kind].late and (module := KINDS[slot.kind].preprocess(scale)) is not None:
                batch[slot.kind] = module(batch[slot.kind])
        del batch["row"]
        return batch

    def _words(self) -> Path:
        found = published_tokenizer(self.info, True) if self.tokenizer is True else Path(str(self.tokenizer))
        if found is None:
            raise UsageError(f"nobody says whose words {self.info.name} reads: give tokenizer=")
        return found

    def _whole(self, kind: str, params: dict, words: Path | None) -> None:
        """As long as the model reads, and not as the rows at hand are."""
        if kind == "text" and words is not None:
            told = {key: found for key, found in params.items() if found is not None}  # of a writer only what it reads
            check_vocabulary(self.info, told, words)
            params["max_tokens"] = reads(self.info).get("length") or MOST_CHARACTERS
        if kind == "audio":
            params |= {"seconds": MOST_SECONDS, "samples": int(MOST_SECONDS * params["rate"])}


def _bytes(cell: Any) -> bytes | None:
    try:
        return Path(cell).expanduser().read_bytes() if isinstance(cell, (str, Path)) else cell
    except OSError as error:
        raise DataError(f"{cell} cannot be read: {error.strerror}") from error
