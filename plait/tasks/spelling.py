"""Texts as the labels that a transcriber writes: characters, or pieces of words learnt from the training texts. Label 0
is no label."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

MARK = "\u2581"  # stands for a space, and for the beginning of a text
UNKNOWN = "\ufffd"


def tidy(text: str) -> str:
    """In Unicode's composed form, with one space between words and none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


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
    import json

    found = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in found]
