"""Texts spelled: characters, or pieces of words learnt from the training texts -> int32 labels. Label 0 is no label."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from plait.core.declared import Record
from plait.data.arrow import as_text
from plait.data.kinds.base import COUNT, SIZE, Bad, FitOptions, Glance, Kind, Missing, Place, cells_of
from plait.data.kinds.text import ASKED, ID, LENGTH, NAMED, TextKind
from plait.data.stores import Ragged

MARK = "\u2581"  # stands for a space, and for the beginning of a text
UNKNOWN = "\ufffd"


def tidy(text: str) -> str:
    """In Unicode's composed form, with one space between words and none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


class SpellingKind(TextKind):
    """Never guessed: what is written letter by letter is asked for so. Read as an input it is a text of few words."""

    name = "spelling"
    learnt: ClassVar[Record] = Record(
        {"spelling": dict, "vocab": SIZE, "max_tokens": LENGTH, "pad": COUNT, **dict.fromkeys(NAMED, ID), **ASKED}
    )

    def guess(self, glance: Glance) -> None:
        return None

    def disagrees(self, params: dict) -> str:
        told = params["spelling"]
        if not set(told) <= {"pieces", "merges"} or not all(isinstance(p, str) for p in told.get("pieces", [None])):
            return "spelling holds no pieces"
        try:
            spelling = spelling_of(json.dumps(told))
            known = (spelling.unknown, len(spelling) + 2)
        except Exception as error:
            return f"spelling cannot be read: {error}"
        got = (params["unk"], params["vocab"])
        return "" if got == known else f"unk and vocab are {got}, expected {known} of this spelling"

    def fit(self, column: pa.ChunkedArray, options: FitOptions) -> dict:
        """`spelling`: what labels stand for; `vocab`, `max_tokens` (of the longest), and the ids that a text has;
        `different` texts, of which `usual` is the commonest, and `share` how common."""
        texts = [t for t in (tidy(as_text(c)) for c in cells_of(column)) if t]
        spelling = Spelling.learn(texts, options.pieces)
        usual, count = min(Counter(texts).items() or [("", 0)], key=lambda item: (-item[1], item[0]))
        most = max((len(spelling.encode(t)) for t in texts), default=1)
        ids = {"pad": 0, "unk": spelling.unknown, "cls": None, "sep": None, "mask": None}
        found = {"usual": usual, "share": count / max(len(texts), 1), "different": len(set(texts))}
        return {"spelling": spelling.to_json(), "vocab": len(spelling) + 2, "max_tokens": most, **ids, **found}

    def fit_target(self, column: pa.ChunkedArray, options: FitOptions) -> dict:
        return self.fit(column, options)

    def encode(self, cell: Any, params: dict, place: Place) -> np.ndarray:
        if isinstance(cell, (bytes, dict)):
            raise Bad("not a text")
        labels = spelling_of(json.dumps(params["spelling"])).encode(as_text(cell))
        if not labels:
            raise Missing("empty text")
        if params["unk"] in labels:
            place.note("a character that no training row has")
        return np.asarray(labels, np.int32)

    encode_some = Kind.encode_some  # the tokenizer of texts has no say here

    def store(self, rows: int, params: dict) -> Ragged:
        """A text of other rows may be longer than the longest of the training rows."""
        return Ragged(rows, np.int32, step=1, most=1 << 20)

    def write(self, value: np.ndarray, params: dict) -> str:
        return spelling_of(json.dumps(params["spelling"])).decode(int(i) for i in value)

    def shape(self, columns: dict[str, dict]) -> dict:
        return {k: v for k, v in super().shape(columns).items() if k != "spelling"}


@lru_cache(maxsize=32)
def spelling_of(text: str) -> Spelling:
    """The spelling that `params["spelling"]` holds, given as JSON text."""
    return Spelling(**json.loads(text))


class Spelling:
    """Labels 1 to len(pieces) stand for `pieces`; one more for whatever cannot be spelled, which only a truth can hold.

    Pieces of one character each spell character by character; longer ones, whose spaces are MARK, by the merges of
    byte-pair encoding.
    """

    def __init__(self, pieces: Sequence[str], merges: Sequence[Sequence[str]] = ()):
        self.pieces, self.merges = list(pieces), [tuple(m) for m in merges]
        self.ids = {piece: i for i, piece in enumerate(self.pieces, 1)}
        self.tokenizer = _tokenizer(self.pieces, self.merges) if self.merges else None

    @classmethod
    def learn(cls, texts: Iterable[str], size: int | None = None) -> Spelling:
        """The characters of `texts`, or about `size` pieces of byte-pair encoding (never fewer than there are
        characters)."""
        texts = [tidy(t) for t in texts]
        if size is None:
            return cls(sorted({c for t in texts for c in t}))
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=MARK)
        trainer = trainers.BpeTrainer(vocab_size=size, min_frequency=2, special_tokens=[], show_progress=False)
        tokenizer.train_from_iterator(texts, trainer, length=len(texts))
        vocab = tokenizer.get_vocab()
        merges = _merges(tokenizer)
        return cls(sorted(vocab, key=vocab.get), merges) if merges else cls(sorted({c for t in texts for c in t}))

    def __len__(self) -> int:
        return len(self.pieces)

    @property
    def unknown(self) -> int:
        """The label of what cannot be spelled."""
        return len(self.pieces) + 1

    def encode(self, text: str) -> list[int]:
        """Labels of a text; what cannot be spelled becomes `unknown`, one a character."""
        text = tidy(text)
        if self.tokenizer is None:
            return [self.ids.get(c, self.unknown) for c in text]
        marked, out, at = MARK + text.replace(" ", MARK), [], 0
        for (start, end), piece in ((e[0], e[1]) for e in self._pieces(marked)):
            out += [self.unknown] * (start - at) + [self.ids[piece]]
            at = end
        return out + [self.unknown] * (len(marked) - at)

    def _pieces(self, marked: str) -> list[tuple[tuple[int, int], str]]:
        """((start, end), piece) of each piece found in a marked text, in order."""
        known = {p for p in self.pieces if len(p) == 1}
        found, start = [], 0
        for i in range(len(marked) + 1):  # runs of known characters, cut at each mark
            if i == len(marked) or marked[i] not in known or (marked[i] == MARK and i > start):
                at = start
                for piece in self.tokenizer.encode(marked[start:i]).tokens if i > start else ():
                    found.append(((at, at + len(piece)), piece))
                    at += len(piece)
                start = i if i < len(marked) and marked[i] in known else i + 1
        return found

    def decode(self, labels: Iterable[int]) -> str:
        """The text of labels; 0 and negative ones are left out."""
        text = "".join(self.pieces[i - 1] if i <= len(self.pieces) else UNKNOWN for i in labels if i > 0)
        return tidy(text.replace(MARK, " ") if self.merges else text)

    def to_json(self) -> dict:
        return {"pieces": self.pieces, "merges": [list(m) for m in self.merges]}


def _tokenizer(pieces: list[str], merges: list[tuple[str, str]]) -> Tokenizer:
    return Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=merges))


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    found = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in found]
