"""Texts: a byte-level BPE learnt from the training texts (or a published tokenizer.json) -> int32 ids, [CLS] tokens
[SEP]."""

from __future__ import annotations

import json
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn

from plait.core.declared import Record, Within
from plait.core.tokens import Tokens
from plait.data.arrow import as_text
from plait.data.drawn import places
from plait.data.kinds.base import (
    BY_TOWER,
    COUNT,
    SIZE,
    Bad,
    FitOptions,
    Glance,
    Kind,
    Missing,
    Place,
    Survey,
    cells_of,
)
from plait.data.stores import Ragged
from plait.data.words import length
from plait.errors import UsageError, panicked
from plait.parts.positions.sine import sinusoids
from plait.parts.presence import Blank
from plait.parts.tokenizers.words import WordTokens

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]  # ids 0 to 4
MOST_TOKENS = 512
CUT = "too long, cut"
MOST_CHARACTERS = 100_000  # far beyond any max_tokens; keeps one huge cell from stalling a run
LEARN, LOOK = 50_000, 10_000  # the most cells that words are learnt from, and that are measured
SPARE = 256  # tokens: what is cut within a word changes no more of those before it
# what published tokenizers call these
NAMES = {
    "pad": ("[PAD]", "<pad>", "<|pad|>", "<|padding|>", "PAD"),
    "unk": ("[UNK]", "<unk>", "<|unk|>"),
    "cls": ("[CLS]", "<s>", "<|startoftext|>", "<bos>", "<|begin_of_text|>", "<start_of_text>"),
    "sep": ("[SEP]", "</s>", "<|endoftext|>", "<eos>", "<|end_of_text|>", "<end_of_text>"),
    "mask": ("[MASK]", "<mask>"),
}


ID, LENGTH = Within(int | None, 0), Within(int, 1, 1 << 20)
NAMED = [role for role in NAMES if role != "pad"]
ASKED = {"different": COUNT, "usual": str, "share": Within(float, 0, 1)}


def _enough(tokens: int) -> int:
    """How many characters of a text surely have so many tokens, and some to spare, in nearly all writing."""
    return min(MOST_CHARACTERS, 16 * tokens + 8 * SPARE)


class TextKind(Kind):
    """Lower case (unless texts have no blanks) and NFKC, bytes as alphabet (so no character is unknown), special ids 0
    to 4 fixed."""

    name, slot, own_slot, media = "text", "text", True, False
    learnt: ClassVar[Record] = Record(
        {"tokenizer": str, "vocab": SIZE, "max_tokens": LENGTH, "pad": COUNT, **dict.fromkeys(NAMED, ID)},
        ASKED | {"prefix": str, "query": str, "asked": bool} | BY_TOWER,
    )

    def guess(self, glance: Glance) -> str | None:
        if not glance.is_text or not glance.sample:
            return None
        words = float(np.mean([length(v) for v in glance.sample]))
        long = float(np.mean([len(v) for v in glance.sample]))
        share = glance.distinct / max(glance.count, 1)
        if (
            (words >= 3 and (glance.distinct > 50 or share > 0.5))
            or (words >= 1.7 and share > 0.5)
            or (long > 60 and glance.distinct > 20)
            or (share >= 0.95 and glance.count >= 5)
        ):
            bare = sum(len(v.split()) < 2 for v in glance.sample) > len(glance.sample) / 2
            said = f"{long:.0f} characters without blanks" if bare else f"{words:.1f} words"
            return f"{said} per cell, {glance.distinct:,} different values in {glance.count:,} cells"
        return None

    def disagrees(self, params: dict) -> str:
        if over := [role for role in NAMES if (params[role] or 0) >= params["vocab"]]:
            return f"the id of {over[0]}, {params[over[0]]}, is beyond the vocabulary of {params['vocab']}"
        ends = (params["cls"] is not None) + (params["sep"] is not None)
        if params["max_tokens"] <= ends:
            return f"max_tokens is {params['max_tokens']}, expected more than the {ends} ends of a text"
        try:
            count = max(tokenizer_of(params["tokenizer"]).get_vocab().values(), default=-1) + 1
        except BaseException as error:
            if not (isinstance(error, Exception) or panicked(error)):
                raise
            return f"the tokenizer cannot be read: {error}"
        if count > params["vocab"]:
            return f"the tokenizer has {count} words, vocab is {params['vocab']}"
        return super().disagrees({k: v for k, v in params.items() if k != "usual"})

    def fit(self, column: pa.ChunkedArray, options: FitOptions) -> dict:
        """`tokenizer` (serialised), `vocab`, `max_tokens` (99th percentile of the lengths, capped), the ids of the
        special tokens, and `prefix`, where something is put before each text."""
        return self._fit(column, options) | ({"prefix": options.prefix} if options.prefix else {})

    def _fit(self, column: pa.ChunkedArray, options: FitOptions, asked: bool = False) -> dict:
        limit = options.max_tokens or MOST_TOKENS
        most = _enough(limit)
        read = (as_text(c)[:most] for c in cells_of(column, LEARN) if not isinstance(c, (bytes, dict)))
        texts = [t for t in read if t.strip()]
        some = [texts[i] for i in places(len(texts), LOOK)]
        if options.tokenizer_file:
            tokenizer = _published(options.tokenizer_file)
        else:
            bare = 2 * sum(len(t.split(maxsplit=1)) < 2 for t in some) > len(some) and not asked
            known = options.tokenizer
            tokenizer = tokenizer_of(known) if known else train_bpe(texts, options.vocab, case=bare)
        ids = special_ids(tokenizer, asked)
        if not (asked or options.closed):
            ids["sep"] = None
        ends = (ids["cls"] is not None) + (ids["sep"] is not None)
        if limit < ends + 1:
            raise UsageError(f"max_tokens is {limit}; texts need at least {ends + 1}.")
        before = "" if asked else options.prefix
        found = tokenizer.encode_batch_fast([before + t for t in some], add_special_tokens=False)
        lengths = [
            max(len(e) + ends, limit if len(t) == most else 0) for e, t in zip(found, some)
        ]  # of what was cut: all
        most = min(-(-int(np.ceil(np.quantile(lengths, 0.99))) // 8) * 8, limit) if lengths else limit
        vocab = max(tokenizer.get_vocab().values()) + 1  # ids may have gaps
        return {"tokenizer": tokenizer.to_str(), "vocab": vocab, "max_tokens": int(most), **ids}

    def fit_target(self, column: pa.ChunkedArray, options: FitOptions) -> dict:
        """Of texts without the spaces around them: as long as the longest is, and no longer than `max_tokens`; `usual`
        is the commonest, as the tokenizer gives it back, and `share` how common it is."""
        texts = [t for t in (as_text(c).strip() for c in cells_of(column)) if t]
        params = self._fit(pa.chunked_array([pa.array(texts, pa.string())]), options, asked=True)
        tokenizer = tokenizer_of(params["tokenizer"])
        if params["sep"] is None:  # nothing is put after a text that is read; one that is written must end
            params["sep"] = named(tokenizer)["sep"]
        if params["cls"] is None:  # GPT-2's begins with what ends another
            params["cls"] = params["sep"]
        found = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ends = (params["cls"] is not None) + (params["sep"] is not None)
        longest = max((len(e.ids) + ends for e in found), default=MOST_TOKENS)
        params |= {
            "asked": True,
            "max_tokens": min(longest, options.max_tokens or MOST_TOKENS),
            "different": len(set(texts)),
        }
        usual, count = min(
            Counter(self.write(e.ids, params) for e in found).items() or [("", 0)], key=lambda i: (-i[1], i[0])
        )
        return params | {"usual": usual, "share": count / max(len(texts), 1)}

    def width(self, params: dict) -> int:
        return params["max_tokens"]

    def encode(self, cell: Any, params: dict, place: Place) -> np.ndarray:
        (found,) = self.encode_some([cell], params, place)
        if isinstance(found, ValueError):
            raise found
        return found

    def encode_some(self, cells: list, params: dict, place: Place) -> list[np.ndarray | Bad | Missing | None]:
        """The tokenizer is asked once."""
        out: list[np.ndarray | Bad | Missing | None] = [
            Bad("not a text") if isinstance(c, (bytes, dict)) else None if c is None else Missing("empty text")
            for c in cells
        ]
        texts = {i: as_text(c) for i, c in enumerate(cells) if isinstance(out[i], Missing)}
        texts = {i: t.strip() if params.get("asked") else t for i, t in texts.items() if t.strip()}
        tokenizer, before = tokenizer_of(params["tokenizer"]), params.get("prefix", "")
        most = _enough(params["max_tokens"])
        cut = [before + t[:most] for t in texts.values()]
        nothing = tokenizer.encode(before, add_special_tokens=False).ids
        for (i, text), found in zip(texts.items(), tokenizer.encode_batch_fast(cut, add_special_tokens=False)):
            if len(text) > most and len(found) < params["max_tokens"] + SPARE:
                found = tokenizer.encode(before + text[:MOST_CHARACTERS], add_special_tokens=False)
            try:
                out[i] = self._tokens(text, found.ids, params, place, nothing)
            except Missing as remark:
                out[i] = remark
        return out

    def survey(self, column: pa.ChunkedArray, params: dict, place: Place) -> Survey | None:
        """Tokenizers make no more tokens of ASCII than it has characters, and one. Of many texts that could be too long
        some are looked at."""
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)) or params.get("prefix"):
            return None
        there = column.is_valid().to_numpy(zero_copy_only=False)
        real = there & pc.not_equal(pc.utf8_trim_whitespace(column), "").fill_null(False).to_numpy()
        if empty := int((there & ~real).sum()):
            place.note("empty text", empty)
        room = params["max_tokens"] - (params["cls"] is not None) - (params["sep"] is not None)
        short = pc.and_(pc.string_is_ascii(column), pc.less(pc.binary_length(column), room)).fill_null(True)
        rest = np.flatnonzero(real & ~short.to_numpy())
        some = rest[places(len(rest), LOOK)]
        seen = Place(place.root, place.allow_outside)
        self.encode_some(column.take(pa.array(some)).to_pylist(), params, seen)
        for remark, count in seen.notes.items():
            place.note(remark, round(count * len(rest) / len(some)))
        told = f"how many texts are too long is estimated from {len(some):,} of {int(there.sum()):,}"
        return Survey(real, [], told if len(some) < len(rest) and seen.notes else "")

    def _tokens(self, text: str, ids: list[int], params: dict, place: Place, nothing: list[int]) -> np.ndarray:
        first = [params["cls"]] if params["cls"] is not None else []
        last = [params["sep"]] if params["sep"] is not None else []
        room = params["max_tokens"] - len(first) - len(last)
        if len(ids) > room or len(text) > MOST_CHARACTERS:
            place.note(CUT if params.get("asked") else "too long")
        if ids == nothing:
            raise Missing("empty text")
        return np.asarray(first + ids[:room] + last, dtype=np.int32)

    def beyond(self, cell: Any, params: dict) -> list[int]:
        """The ids of a text that is asked for which `encode` has no room for."""
        found = tokenizer_of(params["tokenizer"]).encode(as_text(cell).strip(), add_special_tokens=False).ids
        ends = (params["cls"] is not None) + (params["sep"] is not None)
        return found[params["max_tokens"] - ends :]

    def store(self, rows: int, params: dict) -> Ragged:
        # batches are padded with 0, whatever the tokenizer pads with: no model reads what `keep` hides
        return Ragged(rows, np.int32, step=8, most=params["max_tokens"])

    def write(self, value: np.ndarray, params: dict) -> str:
        """The text of ids (N,), without the special ones; a learnt tokenizer knows no capitals."""
        return tokenizer_of(params["tokenizer"]).decode([int(i) for i in value], skip_special_tokens=True).strip()

    def shape(self, columns: dict[str, dict]) -> dict:
        (params,) = columns.values()
        return {k: v for k, v in params.items() if k != "tokenizer"}

    def arguments(self, shape: dict) -> dict:
        return {"vocab": shape["vocab"]}

    def tokens(self, width: int, vocab: int) -> nn.Module:
        return Words(width, vocab)

    def blank(self, vocab: int) -> Blank:
        return (8,), torch.int64

    def augment(
        self, x: Tensor, keep: Tensor | None, shape: dict, generator: torch.Generator, strength: float, whole: bool
    ) -> tuple[Tensor, None]:
        return drop_tokens(x, keep, shape, generator, strength), None


def special_ids(tokenizer: Tokenizer, asked: bool = False) -> dict[str, int | None]:
    """{role: id} of the roles in NAMES; None where the tokenizer has no such token.

    cls and sep are what its own post-processor puts before and after a text; only where it has none do names decide.
    Raises UsageError where it puts several tokens on one side. asked: of a text that is written several may stand
    before: its words follow the last, and those before that are in the model's hands, as they say what is asked.
    """
    ids = named(tokenizer)
    bare, whole = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    if bare != whole:
        at = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
        first, last = whole[:at], whole[at + len(bare) :]
        first = first[-1:] if asked else first
        if max(len(first), len(last)) > 1:
            raise UsageError(f"the tokenizer puts {first} before and {last} after a text: expected at most one each")
        ids["cls"], ids["sep"] = (found[0] if found else None for found in (first, last))
    return ids | {"pad": ids["pad"] or 0}


def named(tokenizer: Tokenizer) -> dict[str, int | None]:
    """{role: id} by the names in NAMES; None where the tokenizer has none of them."""
    return {
        role: next((i for i in map(tokenizer.token_to_id, names) if i is not None), None)
        for role, names in NAMES.items()
    }


class Words(nn.Module):
    """(B, N) token ids -> Tokens, with sinusoid positions: no length is too long."""

    def __init__(self, width: int, vocab: int):
        super().__init__()
        self.words = WordTokens(vocab, width)

    def forward(self, ids: Tensor, keep: Tensor | None) -> Tokens:
        t = self.words(ids, keep)
        return t.replace(x=t.x + 0.1 * sinusoids(ids.shape[1], t.x.shape[-1], ids.device).to(t.x.dtype))


def train_bpe(texts: list[str], vocab: int, case: bool = False) -> Tokenizer:
    """A byte-level BPE with at most `vocab` entries (the 256 bytes and the special ones come first). Deterministic.

    case: capitals are letters of their own, as in formulas: C is carbon and c a carbon of a ring."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    lower = [] if case else [normalizers.Lowercase()]
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), *lower])
    # a "word" of a hundred thousand letters would take the merges minutes
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\S{64}"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, min_frequency=2, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    return tokenizer


@lru_cache(maxsize=32)
def tokenizer_of(text: str) -> Tokenizer:
    """The tokenizer that `params["tokenizer"]` holds."""
    return Tokenizer.from_str(text)


def _published(path: str | Path) -> Tokenizer:
    try:
        text = Path(path).read_text(encoding="utf-8")
        json.loads(text)
        tokenizer = Tokenizer.from_str(text)
    except BaseException as error:  # the tokenizers library raises bare Exceptions, and panics
        if not (isinstance(error, Exception) or panicked(error)):
            raise
        raise UsageError(f"{path} is not a readable tokenizer.json: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def drop_tokens(x: Tensor, keep: Tensor, shape: dict, generator: torch.Generator, strength: float) -> Tensor:
    """(B, N) ids -> a tenth of the ordinary tokens become [MASK], or [UNK] where the tokenizer has no mask."""
    blank = shape["mask"] if shape["mask"] is not None else shape["unk"]
    if blank is None:
        return x
    ordinary = keep
    for special in (shape["pad"], shape["cls"], shape["sep"]):
        if special is not None:
            ordinary = ordinary & (x != special)
    chosen = (torch.rand(x.shape, generator=generator) < min(0.1 * strength, 0.5)).to(x.device)
    return torch.where(chosen & ordinary, blank, x)
