"""What is done to whole columns at once says what is said of them cell by cell, and Python is not called for each."""

from __future__ import annotations

import io
import sys
from collections import defaultdict
from datetime import datetime
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from plait.cli import main
from plait.data import moments, numerals, threads
from plait.data.check import _Answers, _determines, check_table, leaks
from plait.data.codes import counted_levels
from plait.data.digest import cell_digests, row_digests, same_digests
from plait.data.distinct import by_value, read_by_value, smooth
from plait.data.hashes import LONG, codes, hash_column, mixed
from plait.data.kinds import KINDS, Place
from plait.data.kinds.base import FitOptions, Glance
from plait.data.kinds.category import column_text
from plait.data.kinds.number import many_digits
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.data.split import duplicates_across, linked
from plait.data.table import Table, read_table
from plait.data.words import NOTHING, without

WHOLE = (1 << 64) - 1
TEXTS = st.one_of(st.text(max_size=40), st.sampled_from(["", " ", "a", "a" * 15, "a" * 16, "a" * 17, "b" * (LONG + 1)]))


def murmur(data: bytes, seed: int = 0) -> tuple[int, int]:
    """MurmurHash3_x64_128, as its author writes it."""

    def turned(x: int, by: int) -> int:
        return (x << by | x >> (64 - by)) & WHOLE

    def mix(k: int) -> int:
        for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            k = ((k ^ k >> 33) * factor) & WHOLE
        return k ^ k >> 33

    c1, c2, h1, h2 = 0x87C37B91114253D5, 0x4CF5AD432745937F, seed, seed
    whole = len(data) // 16 * 16
    for at in range(0, whole, 16):
        k1, k2 = (int.from_bytes(data[at + i : at + i + 8], "little") for i in (0, 8))
        h1 ^= turned(k1 * c1 & WHOLE, 31) * c2 & WHOLE
        h1 = ((turned(h1, 27) + h2) * 5 + 0x52DCE729) & WHOLE
        h2 ^= turned(k2 * c2 & WHOLE, 33) * c1 & WHOLE
        h2 = ((turned(h2, 31) + h1) * 5 + 0x38495AB5) & WHOLE
    k1, k2 = (int.from_bytes(data[whole + i : whole + i + 8][:8], "little") for i in (0, 8))
    h2 ^= turned(k2 * c2 & WHOLE, 33) * c1 & WHOLE
    h1 ^= turned(k1 * c1 & WHOLE, 31) * c2 & WHOLE
    h1, h2 = h1 ^ len(data), h2 ^ len(data)
    h1 = h1 + h2 & WHOLE
    h2 = h2 + h1 & WHOLE
    h1, h2 = mix(h1), mix(h2)
    h1 = h1 + h2 & WHOLE
    return h1, h2 + h1 & WHOLE


def plain_hash(cell: str | bytes | None) -> tuple[int, int]:
    if cell is None:
        return 0, 0
    data = cell.encode() if isinstance(cell, str) else cell
    if len(data) > LONG:
        return tuple(np.frombuffer(blake2b(data, digest_size=16, key=b"0").digest(), np.uint64).tolist())
    return (0, 1) if (found := murmur(data)) == (0, 0) else found


def test_known_hash() -> None:
    """`hello`, by the reference implementation."""
    assert murmur(b"hello") == (0xCBD8A7B341BD9B02, 0x5B1E906A48AE1D19)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.one_of(st.none(), TEXTS), max_size=12),
    st.integers(0, 3),
    st.sampled_from([pa.string(), pa.large_string(), pa.binary()]),
)
def test_hashes(cells, cut, kind) -> None:
    if pa.types.is_binary(kind):
        cells = [None if c is None else c.encode() for c in cells]
    column = pa.chunked_array([pa.array(cells, kind).slice(cut), pa.array(cells, kind)], kind)
    expected = [plain_hash(c) for c in column.to_pylist()]
    assert [tuple(h) for h in hash_column(column).tolist()] == expected


def test_hashes_of_lists() -> None:
    column = pa.chunked_array([pa.array([[1.0, 2.0], None, [], [1.0, 2.0], [2.0, 1.0]]), pa.array([[1.0, 2.0]])])
    a, nothing, empty, same, other, again = map(tuple, hash_column(column).tolist())
    assert a == same == again and nothing == (0, 0) and len({a, nothing, empty, other}) == 4


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=20))
def test_codes(pairs) -> None:
    """Also where only halves of hashes are the same."""
    found = codes(np.asarray(pairs, np.uint64).reshape(-1, 2))
    assert found.tolist() == [sorted(set(pairs)).index(p) for p in pairs]


CELLS = {
    "whole": st.integers(-3, 3),
    "decimals": st.sampled_from([0.5, 1.0, 2.0, -1e300, float("nan"), None]),
    "words": st.sampled_from(["a", "b", " a ", "", "é", "e\u0301", "1", None]),
    "yes": st.sampled_from([True, False, None]),
    "when": st.sampled_from([datetime(2020, 1, 1), datetime(2020, 1, 1, 12), None]),
    "bytes": st.sampled_from([b"a", b"\xff", b"", None]),
    "lists": st.sampled_from([[1.0], [1.0, 2.0], [], None]),
    "gaps": st.sampled_from([[1.0, None], [1.0], None]),
    "things": st.sampled_from([{"a": [1]}, {"a": [2]}, None]),
}


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sets(st.sampled_from(sorted(CELLS)), min_size=1, max_size=4), st.integers(1, 12))
def test_rows_are_the_same_where_all_cells_are(data, names, n) -> None:
    """The digests of rows part them as their cells do, said as text, in whatever order the columns are named."""
    names = sorted(names)
    kinds = {"bytes": pa.binary(), "lists": pa.list_(pa.float64()), "gaps": pa.list_(pa.float64())}
    kinds["things"] = pa.struct([("a", pa.list_(pa.int64()))])
    cells = {name: [data.draw(CELLS[name]) for _ in range(n)] for name in names}
    table = read_table(pa.table({name: pa.array(some, kinds.get(name)) for name, some in cells.items()}))
    schema = Schema.guess(table.with_column("spare", [float(i) for i in range(n)]), inputs=["spare", *names])

    def plain(name: str) -> list:
        column = schema.read(table).column(name)
        odd = pa.types.is_binary(column.type) or pa.types.is_nested(column.type)
        return [None if c is None else str(c) for c in column.to_pylist()] if odd else column_text(column).to_pylist()

    expected = list(zip(*map(plain, names)))
    digests = row_digests(table, schema, names)
    assert (row_digests(table, schema, names[::-1]) == digests).all()
    for i in range(n):
        assert [d == digests[i] for d in digests] == [row == expected[i] for row in expected]
    for name in names:
        alone = cell_digests(table, schema, name)
        assert [d == b"" for d in alone] == [c is None for c in plain(name)]
        first = same_digests(alone)
        groups = defaultdict(set)
        for number, cell in zip(first.tolist(), plain(name)):
            groups[number].add(cell)
        assert all(len(g) == 1 for g in groups.values()) and (-1 in groups) == (None in plain(name))


def test_cells_that_changed_places_are_another_row() -> None:
    table = read_table({"a": ["x", "y", "x"], "b": ["y", "x", "y"]})
    found = row_digests(table, Schema.guess(table, kinds={"a": "category", "b": "category"}), ["a", "b"])
    assert found[0] == found[2] != found[1]
    one = np.ones((1, 2), np.uint64)
    assert (mixed(one, "a") != mixed(one, "b")).all()


@given(st.lists(st.lists(st.integers(-1, 4), min_size=9, max_size=9), min_size=1, max_size=3))
def test_what_hangs_together(keys) -> None:
    root = list(range(9))
    for key in keys * 9:
        for a in range(9):
            for b in range(9):
                if key[a] == key[b] >= 0:
                    root[a] = root[b] = min(root[a], root[b])
    assert linked([np.asarray(key) for key in keys]).tolist() == root


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.sampled_from([0, 1, None])), max_size=12))
def test_contents_on_several_sides(drawn) -> None:
    cells = [c for c, _ in drawn] + ["d", "e"]
    table = read_table({"c": pa.array(cells, pa.string())})
    sides = {
        name: np.asarray([i for i, (_, s) in enumerate(drawn) if s == at], np.int64) for at, name in enumerate("pq")
    }
    expected = []
    for cell in {c for c, _ in drawn if c is not None}:
        rows = [i for i, (c, s) in enumerate(drawn) if c == cell and s is not None]
        if len({drawn[i][1] for i in rows}) == 2:
            expected.append((rows, ["p", "q"]))
    schema = Schema.guess(table, kinds={"c": "category"}, inputs=["c"])
    found = duplicates_across(table, schema, sides)
    assert [(f["rows"], f["splits"]) for f in found] == sorted(expected)


NUMERALS = ["1", "1.5", "-3", "x", " 4 ", "1,5", "1.234", "$5", "", "NA"]
DATES = ["2020-01-31", "2020-02-29", "2021-02-29", "31.12.2020", "2020-12-31 10:30", "x", "2019-06-31", " 2020-01-01"]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from([*NUMERALS, *DATES, "\u00a0a", "e\u0301", None]), min_size=1, max_size=20))
def test_values_that_repeat_are_read_once_and_alike(cells) -> None:
    few = pa.chunked_array([pa.array(cells, pa.string())])
    many = pa.chunked_array([few.combine_chunks()] * 1000)
    assert len(few) < 1000 <= len(many)
    for read, style in ((numerals.read, numerals.PLAIN), (moments.read, moments.DATES)):
        values, real, bad = read(few, style)
        more = read(many, style)
        np.testing.assert_array_equal(more[0], np.tile(values, 1000))
        np.testing.assert_array_equal(more[1], np.tile(real, 1000))
        assert more[2] == sorted((i + k * len(few), why) for k in range(1000) for i, why in bad)
    for change in (column_text, lambda c: without(c, NOTHING)):
        assert change(many).to_pylist() == change(few).to_pylist() * 1000


def test_values_are_looked_at_once() -> None:
    seen: list[int] = []

    def change(column: pa.ChunkedArray) -> pa.ChunkedArray:
        seen.append(len(column))
        return column

    by_value(pa.chunked_array([["a", "b"] * 2000]), change)
    by_value(pa.chunked_array([[str(i) for i in range(4000)]]), change)
    read_by_value(pa.chunked_array([["1", None] * 2000]), lambda c: numerals.read(c, numerals.PLAIN))
    assert seen == [2, 4000]


@given(st.lists(st.one_of(st.none(), st.text(max_size=3)), max_size=6))
def test_smooth(cells) -> None:
    column = pa.chunked_array([pa.array([*cells, "a"], pa.string()).slice(0, len(cells)), pa.array(["b"])])
    edges = [edge for c in cells if c is not None for edge in (c[:1], c[-1:])]
    assert smooth(column) == all(edge.isascii() and edge.isprintable() and edge > " " for edge in edges)


def test_a_leak_of_a_large_table_is_counted_on_all_rows() -> None:
    """A copy, one with few odd rows, a customer whose rows are all of one class, and names in texts."""
    rng, n = np.random.default_rng(0), 30_000
    y = np.asarray(["no", "yes"])[rng.integers(0, 2, n // 5)]
    label, customer = np.repeat(y, 5), np.repeat(rng.permutation(n // 5), 5)
    odd = label.copy()
    odd[:: n // 20] = "maybe"
    columns = {
        "copy": odd,
        "customer": np.char.add("c", customer.astype(str)),
        "noise": rng.integers(0, 50, n),
        "own": rng.standard_normal(n),
        "text": [f"they said {v} to the {i} people here" for i, v in enumerate(label)],
        "rarely": pa.array(label, mask=np.arange(n) % 2500 != 0),
        "y": label,
    }
    table = read_table(columns)
    schema = Schema.guess(table, target="y", kinds={"customer": "category", "text": "text", "rarely": "category"})
    said = {leak["column"]: leak["sentence"] for leak in leaks(table, schema, "y")}
    assert set(said) == {"copy", "customer", "text", "rarely"}
    assert "29,980 of 30,000" in said["copy"] and "30,000 of 30,000" in said["customer"]
    assert "30,000 of 30,000" in said["text"] and "12 of 12" in said["rarely"]


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("xyz")), min_size=10, max_size=60))
def test_what_determines_is_counted(pairs) -> None:
    cells, answer = (pa.chunked_array([[*part] * 3]) for part in zip(*pairs))
    best = sum(max(np.unique([y for x, y in pairs if x == v], return_counts=True)[1]) for v in {x for x, _ in pairs})
    said = _determines("c", cells, "t", _Answers(answer), slack=1.0)  # however few it tells
    assert said is None or f"in {3 * best:,} of {3 * len(pairs):,} rows" in said
    assert said is not None or len({y for _, y in pairs}) < 2


@given(st.lists(st.one_of(st.integers(-40, 40), st.sampled_from([2**53, -(2**53), 1e308, -1e308]))))
def test_levels_are_counted_as_by_sorting(numbers) -> None:
    x = np.asarray(numbers, np.float64)
    for found, wanted in zip(counted_levels(x), np.unique(x, return_inverse=True, return_counts=True)):
        assert np.array_equal(found, wanted)


def test_threads_say_the_same_in_the_same_order(monkeypatch) -> None:
    rng, n = np.random.default_rng(0), 400
    y = rng.integers(0, 3, n)
    table = {
        "price": [f"{v:.2f} EUR" for v in rng.random(n) * 1000],
        "day": [f"{d + 1}.3.2020" for d in range(31)] * 12 + ["?"] * 28,
        "code": y * 10 + 7,
        "note": [f"a note of some words {i % 90}" for i in range(n)],
        "only": ["x", None] * (n // 2),
        "copy": y,
        "y": [("no", "so", "yes")[v] for v in y],
    }

    def looked() -> tuple:
        data = read_table(pa.table(table))
        schema = Schema.guess(data, target="y")
        schema.fit(data, np.arange(n))
        rows = Rows(data, schema, asked=True, keep=False)
        return schema.to_json(), schema.said, check_table(data, schema, rows), rows.bad.count()

    alone, beside = looked(), []
    monkeypatch.setattr(threads, "MANY", 0)
    begun = threads.ThreadPoolExecutor
    monkeypatch.setattr(threads, "ThreadPoolExecutor", lambda n: beside.append(n) or begun(n))
    assert looked() == alone and len(beside) > 5
    with pytest.raises(ZeroDivisionError):
        threads.each(lambda i: 1 // i, [2, 0, "x"], 1)  # the first in their order


def test_reading_without_keeping_says_the_same() -> None:
    cells = {
        "n": ["1", "2", "x", None, "5"] * 8,
        "c": list("aabbc") * 8,
        "d": ["2020-01-01", "2020-02-30", None, "2021-01-01", "2022-01-01"] * 8,
        "b": ["yes", "no", "perhaps", "no", None] * 8,
        "t": ["a long text of words " * 9, " ", None, "small text", "é" * 40] * 8,
    }
    table = read_table(cells)
    kinds = {"n": "number", "c": "category", "d": "datetime", "b": "boolean", "t": "text"}
    schema = Schema.guess(table, kinds=kinds).fit(table, np.arange(30), max_tokens=16)
    kept, told = Rows(table, schema).scan(), Rows(table, schema, keep=False).scan()
    assert told.bad.cells == kept.bad.cells and told.notes == kept.notes
    assert {k: v.tolist() for k, v in told.presence().items()} == {k: v.tolist() for k, v in kept.presence().items()}
    assert check_table(table, schema, told) == check_table(table, schema, kept)
    with pytest.raises(ValueError, match="keep=True"):
        told.batch(np.arange(2))


def test_an_estimate_says_that_it_is_one() -> None:
    texts = pa.chunked_array([[f"word{i} " * (30 if i % 4 == 0 else 9) for i in range(24_000)]])
    params = KINDS["text"].fit(texts.slice(0, 100), FitOptions(Place(), max_tokens=40))
    place = Place()
    found = KINDS["text"].survey(texts, params, place)
    assert found.real.all() and "estimated from 10,000 of 24,000" in found.said
    assert place.notes["too long"] == pytest.approx(6000, rel=0.05)
    few = KINDS["text"].survey(texts.slice(0, 4000), params, place := Place())
    assert not few.said and place.notes["too long"] == 1000


def calls(table: Table | str, target: str) -> int:
    """How often Python functions, its own and those of libraries, are called in `plait check`."""
    count = 0

    def watch(frame, event, argument) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(watch)
    try:
        assert main(["check", str(table), "--target", target, "--quiet"]) == 0
    finally:
        sys.setprofile(None)
    return count


def test_python_is_not_called_for_each_cell(tmp_path) -> None:
    """Four times the rows, hardly more calls; the first check pays for the imports."""
    rng, found = np.random.default_rng(0), []
    for n in (3000, 3000, 12_000):
        days = np.datetime64("2020-01-01") + rng.integers(0, 300, n)
        columns = {
            "whole": rng.integers(0, 1000, n),
            "part": pa.array(rng.standard_normal(n), mask=rng.random(n) < 0.1),
            "sort": rng.choice(["red", "green", "blue"], n),
            "yes": rng.choice([True, False], n),
            "day": days.astype(str),
            "y": rng.choice(["a", "b"], n),
        }
        path = tmp_path / f"{len(found)}.csv"
        pa.csv.write_csv(pa.table(columns), path)
        found.append(calls(path, "y"))
    assert found[2] < 1.2 * found[1], found


def test_texts_of_large_tables_are_read_with_their_batches(monkeypatch) -> None:
    table = read_table(
        {
            "t": ["a red door", None, " ", "small", "a blue house by the river " * 9] * 6,
            "n": [0.5 * (i % 7) for i in range(30)],
        }
    )
    schema = Schema.guess(table, kinds={"t": "text"}).fit(table, np.arange(30), max_tokens=16)
    kept = Rows(table, schema).scan()
    monkeypatch.setattr("plait.data.rows.LATE", 10)
    late = Rows(table, schema).scan()
    assert late.notes == kept.notes and late._stores == {"text_0": None} != kept._stores
    for index in (np.arange(30), np.asarray([4, 4, 1, 2, 29])):
        a, b = kept.batch(index), late.batch(index)
        assert a.keys() == b.keys() and all((a[k] == b[k]).all() for k in ("text_0", "number", "row"))
        assert all((a[k]["text_0"] == b[k]["text_0"]).all() for k in ("keep", "present"))
    monkeypatch.setattr("plait.data.rows.CELLS", 7)
    assert (late.batch(np.arange(30))["text_0"] == kept.batch(np.arange(30))["text_0"]).all()


def test_long_texts_are_cut_before_they_are_read() -> None:
    """What is beyond the words that are read changes nothing: only so much of a text goes to the tokenizer, and all of
    it where that were too few."""
    kind, words = KINDS["text"], "the river by the house is blue and the door of it red, said 17 people. "
    params = kind.fit(pa.chunked_array([[words, words[::-1]] * 20]), FitOptions(Place(), max_tokens=32))
    place = Place()
    for text in (
        words * 1400,
        "é" * 90_000,
        " " * 50_000 + words * 100,
        "x" * 99_999,
        words * 200 + "\U0001f600" * 9000,
    ):
        (found,) = kind.encode_some([text], params, place)
        whole = kind._tokens(text, _tokenizer(params).encode(text, add_special_tokens=False).ids, params, Place(), [])
        np.testing.assert_array_equal(found, whole)
    assert place.notes["too long"] == 5
    runs = kind.fit(pa.chunked_array([["x" * 6400, words] * 20]), FitOptions(Place(), max_tokens=64))
    (found,) = kind.encode_some(["x" * 9000], runs, place)  # a token for 64 of them
    assert len(found) == 64


def _tokenizer(params: dict):
    from plait.data.kinds.text import tokenizer_of

    return tokenizer_of(params["tokenizer"])


def test_a_tokenizer_gets_no_more_than_it_needs(monkeypatch) -> None:
    seen: list[int] = []

    class Watched:
        def __init__(self, inner) -> None:
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def encode_batch_fast(self, texts, **how):
            seen.extend(map(len, texts))
            return self.inner.encode_batch_fast(texts, **how)

    kind, long = KINDS["text"], "the river by the house is blue " * 3000
    params = kind.fit(pa.chunked_array([[long] * 4]), FitOptions(Place(), max_tokens=32))
    inner = _tokenizer(params)
    monkeypatch.setattr("plait.data.kinds.text.tokenizer_of", lambda text: Watched(inner))
    kind.encode_some([long], params, Place())
    assert len(seen) == 1 and max(seen) < 4000


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "1", "L", "I;16", "F", "CMYK"])
@pytest.mark.parametrize("turned", [1, 6])
@pytest.mark.parametrize("learnt", [True, False])
def test_very_large_pictures_are_made_smaller_in_parts(monkeypatch, mode, turned, learnt) -> None:
    """And look as others do, on their side or not."""
    across, down = np.meshgrid(np.linspace(0, 6, 613), np.linspace(0, 4, 389))
    waves = np.stack([np.sin(across + k) * np.cos(down - k) for k in range(4)], 2)
    pixels = (127 + 120 * waves).astype(np.uint8)
    if mode in ("I;16", "F"):
        deep = pixels[..., 0].astype(np.float32) * 16
        picture = Image.fromarray(deep.astype(np.uint16) if mode == "I;16" else deep)
    else:
        picture = Image.fromarray(pixels, "RGBA").convert("RGB" if mode != "RGBA" else mode).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = turned
    out = io.BytesIO()
    kept = {} if mode in ("F", "CMYK") else {"exif": exif}
    picture.save(out, "TIFF" if mode in ("F", "CMYK") else "PNG", **kept)
    params = {"size": [40, 56]} | ({"range": [0.0, 4000.0]} if learnt else {})
    usual = KINDS["image"].encode(out.getvalue(), params, Place())
    monkeypatch.setattr("plait.data.kinds.image.LARGE", 10_000)
    monkeypatch.setattr("plait.data.kinds.image.STRIP", 7000)
    parts: list[tuple[int, int]] = []
    reduce = Image.Image.reduce
    monkeypatch.setattr(Image.Image, "reduce", lambda self, by: parts.append(self.size) or reduce(self, by))
    place = Place()
    found = KINDS["image"].encode(out.getvalue(), params, place)
    assert found.shape == usual.shape == (3, 40, 56) and not place.large.locked()
    assert (
        np.abs(found.astype(int) - usual).mean() < 2
        and (found == 128).all((0, 2)).tolist() == (usual == 128).all((0, 2)).tolist()
    )
    assert len(parts) > 5 and max(w * h for w, h in parts) <= 7000


def test_rows_are_digested_in_parts_as_in_one(monkeypatch) -> None:
    lists = [[1.0, 2.0], [1.0, None], None, [2.0], [1.0, 2.0]] * 4
    table = read_table({"a": list("xyxzé") * 4, "n": [1, 2, 1, None, 5] * 4, "l": pa.array(lists), "s": [b"\xff"] * 20})
    schema, names = Schema.guess(table, kinds={"s": "category"}), ["a", "n", "l", "s"]
    whole = row_digests(table, schema, names)
    monkeypatch.setattr("plait.data.digest.ROWS", 3)
    parts = row_digests(read_table(table.data), schema, names)
    assert (whole == parts).all() and len(set(whole.tolist())) == 5


def test_some_numbers_that_are_too_long_make_codes_of_a_column() -> None:
    """A tenth of 5,000 cells: of what share is asked decides how far below it a sample may be."""
    cells = [f"{i * 7}" + "1234567890123456" * (i % 10 == 0) for i in range(1, 5001)]
    assert many_digits(Glance("c", pa.chunked_array([cells]), Place()))


@given(st.lists(st.sampled_from(["ab", "AB", "b1", "", "1"]), min_size=1, max_size=6))
def test_matches_are_counted_alike(cells) -> None:
    few, many = (Glance("c", pa.chunked_array([cells * times]), Place()) for times in (1, 1000))
    for pattern in ("^a", r"\d$", "^$"):
        assert many.matching(pattern) == 1000 * few.matching(pattern)
        asked = many.matching(pattern, 0.5)
        assert asked == many.matching(pattern) or (asked == 0 and 2 * many.matching(pattern) < many.count)
