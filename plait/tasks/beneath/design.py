"""What simple models read of a batch: a matrix with columns in the thousands for linear ones, and a narrow one for
trees.

Everything is learnt from the training rows without their targets, but the means of the target by category, which trees
read in place of many levels; these are drawn out of fold (`sklearn.preprocessing.TargetEncoder`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from plait.data.kinds.text import tokenizer_of
from plait.data.schema import Schema
from plait.tasks.beneath import seen

FEW = 10  # levels of a category that trees read one by one; of more they read the target's means
BINS = 10  # of a number, where linear models are to bend
MOST_COLUMNS = 256  # of a block that trees read one by one
WIDE = 48  # directions that they read of a wider one, and of texts
TERMS = ("words", "pairs", "characters")
MOST_TERMS = 30_000  # of each sort, the most frequent
MOST_CHARACTERS = 4_000_000  # that are cut into n-grams; of more text, only the beginnings of each
READERS: dict[str, Callable[[torch.Tensor, torch.Tensor, dict], torch.Tensor]] = {
    "vector": lambda x, keep, params: x,
    "labels": lambda x, keep, params: x,
    "image": lambda x, keep, params: seen.pictures(x),
    "audio": lambda x, keep, params: seen.sounds(x, keep, params["rate"]),
    "series": lambda x, keep, params: seen.series(x, keep),
}

Parts = dict[str, Any]  # {slot: what simple models may know of its rows}, float32 (n, F), int64 (n, F) or n texts


def parts(batch: dict, schema: Schema) -> Parts:
    """The slots of a batch that simple models can read: numbers (n, F) with NaN where there is none, ids of categories
    (n, F), texts, and other vectors (n, F), NaN where absent; of pictures, sounds and series they are what `seen` makes
    of them."""
    found: Parts = {}
    for slot in schema.slots:
        here = batch["present"][slot.name].cpu().numpy()
        x, keep = batch[slot.name], batch["keep"].get(slot.name)
        if slot.kind in ("number", "category"):
            hidden = (
                ~(keep.cpu() & torch.from_numpy(here)[:, None])
                if keep is not None
                else ~torch.from_numpy(here)[:, None]
            )
            found[slot.name] = x.cpu().masked_fill(hidden, torch.nan if slot.kind == "number" else 0).numpy()
        elif slot.kind == "text":
            found[slot.name] = _texts(x, keep, here, schema.column(slot.columns[0]).params)
        elif slot.kind in READERS:
            values = READERS[slot.kind](x, keep, schema.column(slot.columns[0]).params).float().cpu().numpy().copy()
            values[~here] = np.nan
            found[slot.name] = values
    return found


def _texts(ids: torch.Tensor, keep: torch.Tensor | None, here: np.ndarray, params: dict) -> list[str]:
    rows = ids.masked_fill(~keep, 0).cpu().tolist() if keep is not None else ids.cpu().tolist()
    texts = tokenizer_of(params["tokenizer"]).decode_batch(rows, skip_special_tokens=True)
    return [text.strip() if there else "" for text, there in zip(texts, here)]


def joined(found: list[Parts]) -> Parts:
    """Parts of several batches end to end."""
    if not found:
        return {}
    whole: Parts = {}
    for name, first in found[0].items():
        pieces = [one[name] for one in found]
        whole[name] = [t for piece in pieces for t in piece] if isinstance(first, list) else np.concatenate(pieces)
    return whole


@dataclass
class Design:
    """How the matrices are made of `Parts`; plain JSON in `told`, arrays in `arrays`. Made by `fit`."""

    told: dict[str, dict] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._readers: dict[str, Any] = {}

    @property
    def bends(self) -> bool:
        """Whether there are numbers of which bins can be made."""
        return any(one.get("bins") for one in self.told.values())

    @property
    def words(self) -> bool:
        """Whether there are texts."""
        return any(one["kind"] == "text" for one in self.told.values())

    @property
    def only_texts(self) -> bool:
        """Whether there is nothing else, which trees read badly."""
        return all(one["kind"] == "text" for one in self.told.values())

    # -- linear models

    def linear(self, given: Parts, bins: bool, terms: Sequence[str]) -> sp.csr_matrix:
        """(n, F) float64. bins: numbers also stand in bins, so that a straight line can bend. terms: of texts, some of
        TERMS."""
        return chosen(self.blocks(given, bins, terms), bins, terms)

    def straight(self, given: Parts) -> np.ndarray:
        """(n, F) float64: the same without texts and bins."""
        return self.linear(given, False, ()).toarray()

    def blocks(self, given: Parts, bins: bool, terms: Sequence[str]) -> list[tuple[str, sp.spmatrix]]:
        """What `linear` puts side by side: each of TERMS, "bins", or "" for what always stands there, and (n, F)."""
        return [block for name, one in self.told.items() for block in self._blocks(given[name], name, one, bins, terms)]

    def _blocks(
        self, x: Any, name: str, one: dict, bins: bool, terms: Sequence[str]
    ) -> Iterator[tuple[str, sp.spmatrix]]:
        if one["kind"] == "text":
            for how, reader in self._terms(name).items():
                if how in terms:
                    yield how, reader.transform(_cut(x, one) if how == "characters" else x)
        elif one["kind"] == "category":
            yield "", one_hot(x, one["levels"])
        elif one["kind"] == "number":
            # beside words, whose rows have length one, numbers are to be small: gradient steps are then large
            yield "", sp.csr_matrix(0.3 * np.clip(np.nan_to_num(x), -3, 3) if self.words else np.nan_to_num(x))
            gone = np.isnan(x)[:, one["gaps"]]
            yield "", sp.csr_matrix(gone.astype(np.float64))
            if bins and one["bins"]:
                levels = [len(self.arrays[f"{name}.edges.{i}"]) + 2 for i in one["bins"]]
                yield "bins", one_hot(self._binned(x, name, one), levels)
        else:
            yield "", sp.csr_matrix(self._centred(x, name) / one["norm"])

    def _binned(self, x: np.ndarray, name: str, one: dict) -> np.ndarray:
        """(n, columns) which bin each number is in, from 1 on, 0 where there is none."""
        found = [np.searchsorted(self.arrays[f"{name}.edges.{i}"], x[:, i], side="right") + 1 for i in one["bins"]]
        return np.where(np.isnan(x[:, one["bins"]]), 0, np.stack(found, 1))

    def _centred(self, x: np.ndarray, name: str) -> np.ndarray:
        mean, std = self.arrays[f"{name}.mean"], self.arrays[f"{name}.std"]
        return np.nan_to_num((x - mean) / std)

    def _terms(self, name: str) -> dict[str, Any]:
        """The vectorizers of words, pairs of them, and characters."""
        if name not in self._readers:
            one = self.told[name]
            self._readers[name] = {
                how: _vectorizer(how, one["foreign"], list(terms), self.arrays[f"{name}.idf.{how}"])
                for how, terms in one["terms"].items()
            }
        return self._readers[name]

    # -- trees

    def dense(self, given: Parts) -> np.ndarray:
        """(n, F) float32 with NaN where nothing is; the categories of many levels are not in it."""
        blocks = []
        for name, one in self.told.items():
            x = given[name]
            if one["kind"] == "text":
                terms = next(iter(self._terms(name).values())).transform(x)
                length = np.asarray([[len(t), t.count(" ")] for t in x], np.float64)
                blocks += [terms @ self.arrays[f"{name}.directions"].T.astype(np.float64), length]
            elif one["kind"] == "category":
                blocks.append(one_hot(x[:, one["few"]], [one["levels"][i] for i in one["few"]]).toarray())
            elif one["kind"] == "number" or f"{name}.directions" not in self.arrays:
                blocks.append(x)
            else:
                turned = self._centred(x, name) @ self.arrays[f"{name}.directions"].T
                blocks.append(np.where(np.isnan(x).all(1)[:, None], np.nan, turned))
        return np.concatenate(blocks, 1).astype(np.float32) if blocks else np.zeros((0, 0), np.float32)

    def many(self, given: Parts) -> np.ndarray | None:
        """(n, columns) ids of the categories of many levels, or None."""
        blocks = [
            given[name][:, one["many"]] for name, one in self.told.items() if one["kind"] == "category" and one["many"]
        ]
        return np.concatenate(blocks, 1) if blocks else None

    # -- learning

    @classmethod
    def fit(cls, given: Parts, schema: Schema, seed: int) -> Design:
        """Of the training rows."""
        out = cls()
        for slot in schema.slots:
            x = given.get(slot.name)
            if x is None:
                continue
            if slot.kind == "text":
                out._fit_text(slot.name, x, seed)
            elif slot.kind == "category":
                levels = [int(x[:, i].max(initial=0)) + 1 for i in range(x.shape[1])]
                few = [i for i, n in enumerate(levels) if n <= FEW + 1]
                many = [i for i, n in enumerate(levels) if n > FEW + 1]
                out.told[slot.name] = {"kind": "category", "levels": levels, "few": few, "many": many}
            elif slot.kind == "number":
                out._fit_numbers(slot.name, x)
            else:
                out._fit_vector(slot.name, slot.kind, x, seed)
        return out

    def _fit_numbers(self, name: str, x: np.ndarray) -> None:
        bins = []
        for i in range(x.shape[1]):
            values = x[~np.isnan(x[:, i]), i]
            if len(np.unique(values[:10_000])) <= BINS:
                continue
            edges = np.unique(np.quantile(values, np.arange(1, BINS) / BINS))
            if len(edges) > 1:
                bins.append(i)
                self.arrays[f"{name}.edges.{i}"] = edges
        gaps = np.flatnonzero(np.isnan(x).any(0) & ~np.isnan(x).all(0)).tolist()
        self.told[name] = {"kind": "number", "gaps": gaps, "bins": bins}

    def _fit_vector(self, name: str, kind: str, x: np.ndarray, seed: int) -> None:
        there = x[~np.isnan(x).any(1)]
        there = there if len(there) else np.zeros((1, x.shape[1]), np.float32)
        std = there.std(0)
        self.arrays[f"{name}.mean"] = there.mean(0)
        self.arrays[f"{name}.std"] = np.where(std > 1e-6, std, 1.0).astype(np.float32)
        self.told[name] = {"kind": kind, "norm": float(x.shape[1] ** 0.5) / 4 if x.shape[1] > 16 else 1.0}
        if x.shape[1] > MOST_COLUMNS:
            self.arrays[f"{name}.directions"] = _directions(self._centred(there, name), seed)

    def _fit_text(self, name: str, texts: list[str], seed: int) -> None:
        total = sum(map(len, texts))
        characters = max(MOST_CHARACTERS // max(len(texts), 1), 20) if total > MOST_CHARACTERS else 0
        foreign = sum(ord(c) > 0x2E80 for t in texts[:1000] for c in t) > 0.3 * sum(map(len, texts[:1000]))
        one: dict = {"kind": "text", "cut": characters, "foreign": foreign, "terms": {}}
        for how in TERMS:
            reader = _vectorizer(how, foreign)
            try:
                rows = reader.fit_transform(_cut(texts, one) if how == "characters" else texts)
            except ValueError:  # not a single term
                continue
            if not one["terms"]:
                self.arrays[f"{name}.directions"] = _directions(rows, seed)
            self.arrays[f"{name}.idf.{how}"] = reader.idf_.astype(np.float32)
            one["terms"][how] = reader.get_feature_names_out().tolist()
        if one["terms"]:
            self.told[name] = one


def _vectorizer(how: str, foreign: bool, terms: list[str] | None = None, idf: np.ndarray | None = None):
    """Of words, of pairs of them, or of 2 to 5 characters within words; where texts are foreign, of signs that are
    words, and of up to three. terms and idf: what it has learnt."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    token = r"(?u)\w" if foreign else r"(?u)\w+|[^\w\s]"
    ways = {
        "words": dict(analyzer="word", token_pattern=token, min_df=1),
        "pairs": dict(analyzer="word", token_pattern=token, ngram_range=(2, 2), min_df=1),
        "characters": dict(analyzer="char", ngram_range=(3, 3), min_df=2)
        if foreign
        else dict(analyzer="char_wb", ngram_range=(2, 5), min_df=2),
    }
    limit = dict(vocabulary=terms) if terms is not None else dict(max_features=MOST_TERMS)
    made = TfidfVectorizer(lowercase=False, sublinear_tf=True, dtype=np.float64, **ways[how], **limit)
    if idf is not None:
        made.idf_ = idf.astype(np.float64)
    return made


def _cut(texts: list[str], one: dict) -> list[str]:
    """Texts whose characters are counted."""
    return [t[: one["cut"]] for t in texts] if one["cut"] else texts


def _directions(x: Any, seed: int) -> np.ndarray:
    """(D, F) along which the rows differ most."""
    from sklearn.decomposition import TruncatedSVD

    count = min(WIDE, x.shape[1] - 1, x.shape[0] - 1)
    if count < 1:
        return np.zeros((1, x.shape[1]), np.float32)
    return TruncatedSVD(count, random_state=seed, n_iter=4).fit(x).components_.astype(np.float32)


def chosen(blocks: list[tuple[str, sp.spmatrix]], bins: bool, terms: Sequence[str]) -> sp.csr_matrix:
    """(n, F) float64: those of `Design.blocks` that are read."""
    read = ["", *terms, "bins"] if bins else ["", *terms]
    return sp.hstack([block for how, block in blocks if how in read], format="csr", dtype=np.float64)


def one_hot(ids: np.ndarray, levels: list[int]) -> sp.csr_matrix:
    """ids (n, C) below the levels of each column -> (n, sum of levels - C); 0 is nothing, and so is what is above."""
    n, columns = ids.shape
    sizes = np.asarray([level - 1 for level in levels], np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    said = (ids > 0) & (ids <= sizes)
    rows, where = np.nonzero(said)
    return sp.csr_matrix(
        (np.ones(len(rows)), (rows, starts[where] + ids[rows, where].astype(np.int64) - 1)), shape=(n, int(starts[-1]))
    )
