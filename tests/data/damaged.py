"""Damaged tables, one per seed: what users really bring.

`damaged(seed, folder)` gives a path or an object, and the arguments of a fit.

Everything follows from the seed. The kinds of damage take turns: `range(200)` meets each several times, on other
tables.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import soundfile

from tests.data.maker import Damaged, Maker, bomb

LABEL = {"target": "label"}


def ragged_csv(m: Maker) -> Damaged:
    path = m.csv(m.table())
    lines = path.read_text(encoding="utf-8").split("\n")
    at = int(m.rng.integers(1, m.n))
    lines[at] = lines[at] + ",surplus" if m.rng.integers(2) else lines[at].rsplit(",", 2)[0]
    path.write_text("\n".join(lines), encoding="utf-8")
    return Damaged("ragged csv", path, LABEL)


def nul_bytes(m: Maker) -> Damaged:
    path = m.csv(m.table())
    data = bytearray(path.read_bytes())
    data[int(m.rng.integers(5, len(data)))] = 0
    path.write_bytes(bytes(data))
    return Damaged("NUL bytes", path, LABEL)


def latin1(m: Maker) -> Damaged:
    path = m.csv({**m.table(), "name": ["café"] * m.n})
    text = path.read_text(encoding="utf-8")
    if m.rng.integers(2):
        path.write_bytes(text.encode("latin-1", "replace"))
        return Damaged("wrong encoding", path, LABEL)
    path.write_bytes(text.encode(["utf-16", "utf-16-le", "utf-16-be"][int(m.rng.integers(3))]))
    return Damaged("UTF-16", path, LABEL)


def cut_csv(m: Maker) -> Damaged:
    path = m.csv(m.table())
    data = path.read_bytes()
    path.write_bytes(data[: int(m.rng.integers(0, len(data)))])
    return Damaged("csv cut off", path, LABEL)


def truncated_pictures(m: Maker) -> Damaged:
    names = m.pictures()
    for i in m.some():
        data = (m.folder / names[i]).read_bytes()
        (m.folder / names[i]).write_bytes(data[: int(m.rng.integers(0, len(data)))])
    return Damaged("truncated pictures", m.csv({"photo": names, **m.table()}), LABEL)


def all_pictures_broken(m: Maker) -> Damaged:
    pictures = [m.png()[: int(m.rng.integers(9, 60))] for _ in range(m.n)]
    return Damaged("all pictures broken", m.parquet({"photo": pictures, "label": m.table()["label"]}), LABEL)


def text_called_png(m: Maker) -> Damaged:
    names = m.pictures()
    for i in m.some():
        (m.folder / names[i]).write_text("not a picture at all\n" * int(m.rng.integers(1, 9)))
    return Damaged("text files called .png", m.csv({"photo": names, **m.table()}), LABEL)


def odd_pictures(m: Maker) -> Damaged:
    modes = ["RGB", "L", "P", "RGBA", "LA", "1", "I;16"]
    cells = [
        m.png(int(m.rng.integers(1, 40)), int(m.rng.integers(1, 40)), str(m.rng.choice(modes[:6]))) for _ in range(m.n)
    ]
    cells[0] = m.png(1, 300)
    return Damaged("pictures of odd modes and shapes", m.parquet({"photo": cells, **m.table()}), LABEL)


def picture_bombs(m: Maker) -> Damaged:
    cells = [m.png() for _ in range(m.n)]
    for i in m.some(0.2):
        cells[i] = bomb()
    return Damaged("picture bombs", m.parquet({"photo": cells, **m.table()}), LABEL)


def broken_sounds(m: Maker) -> Damaged:
    names = m.sounds()
    for i in m.some():
        data = (m.folder / names[i]).read_bytes()
        (m.folder / names[i]).write_bytes(
            [b"", data[:20], data[: len(data) // 2], data[:44], b"RIFFxxxxWAVE"][int(m.rng.integers(5))]
        )
    return Damaged("broken sounds", m.csv({"clip": names, **m.table()}), LABEL)


def strange_sounds(m: Maker) -> Damaged:
    cells = []
    for i in range(m.n):
        out = io.BytesIO()
        wave = m.rng.standard_normal((int(m.rng.integers(0, 3000)), int(m.rng.integers(1, 4)))).astype(np.float32)
        if i % 5 == 0 and len(wave):
            wave[0, 0] = [np.nan, np.inf, 1e30][i % 3]
        soundfile.write(out, wave, int(m.rng.choice([4000, 8000, 11025, 44100])), format="WAV", subtype="FLOAT")
        cells.append(out.getvalue())
    return Damaged("sounds with NaN, of many rates", m.parquet({"clip": cells, **m.table()}), LABEL)


def not_finite(m: Maker) -> Damaged:
    table = m.table()
    for i in m.some():
        table["number"][i] = [float("nan"), float("inf"), float("-inf"), 1e308, -1e308, 5e-324][int(m.rng.integers(6))]
    return Damaged("NaN and infinity", table, LABEL)


def nan_target(m: Maker) -> Damaged:
    table = m.table()
    for i in m.some(0.5):
        table["number"][i] = [float("nan"), float("inf"), None][int(m.rng.integers(3))]
    return Damaged("target with NaN", table, {"target": "number"})


def all_missing(m: Maker) -> Damaged:
    table = m.table()
    for name in m.rng.choice(["text", "number", "colour", "day", "flag"], int(m.rng.integers(1, 6)), replace=False):
        table[str(name)] = [None] * m.n
    return Damaged("columns without a value", table if m.rng.integers(2) else m.csv(table), LABEL)


def mostly_missing(m: Maker) -> Damaged:
    table = {name: [c if m.rng.random() < 0.1 else None for c in cells] for name, cells in m.table().items()}
    table["label"] = m.table()["label"]
    return Damaged("nine tenths missing", m.csv(table), LABEL)


def missing_target(m: Maker) -> Damaged:
    table = m.table()
    few = m.some(0.2)
    table["label"] = (
        [c if i in few else None for i, c in enumerate(table["label"])] if m.rng.integers(2) else [None] * m.n
    )
    return Damaged("target mostly missing", table, LABEL)


def one_class(m: Maker) -> Damaged:
    return Damaged("one class", {**m.table(), "label": ["cat"] * m.n}, LABEL)


def rare_classes(m: Maker) -> Damaged:
    labels = ["cat"] * (m.n - 3) + ["dog", "dog", "emu"]
    return Damaged("rare classes", {**m.table(), "label": labels}, LABEL)


def all_different_target(m: Maker) -> Damaged:
    return Damaged("every target different", {**m.table(), "label": [f"x{i}" for i in range(m.n)]}, LABEL)


def few_rows(m: Maker) -> Damaged:
    keep = int(m.rng.integers(0, 4))
    table = {name: cells[:keep] for name, cells in m.table().items()}
    return Damaged(f"{keep} rows", table if m.rng.integers(2) else m.csv(table), LABEL)


def empty_file(m: Maker) -> Damaged:
    path = m.folder / ("table" + str(m.rng.choice([".csv", ".parquet", ".jsonl", ".tsv", ".json"])))
    path.write_bytes([b"", b"\n", b"\n\n\n", b"PAR1", b"[]", b"{}"][int(m.rng.integers(6))])
    return Damaged("empty file", path, LABEL)


def no_target(m: Maker) -> Damaged:
    return Damaged("no such target", m.table(), {"target": str(m.rng.choice(["labels", "Label", "zzz", ""]))})


def unknown_kind(m: Maker) -> Damaged:
    return Damaged(
        "unknown kind", m.table(), {**LABEL, "kinds": {"text": str(m.rng.choice(["txt", "picture", "", "Image"]))}}
    )


def wrong_kind(m: Maker) -> Damaged:
    kinds = {
        str(c): str(m.rng.choice(["image", "audio", "vector", "number", "datetime", "boolean", "text"]))
        for c in ("text", "number", "colour", "day")
    }
    return Damaged("wrong kinds", m.csv(m.table()), {**LABEL, "kinds": kinds})


def two_uses(m: Maker) -> Damaged:
    return Damaged("a column with two uses", m.table(), {**LABEL, "inputs": ["text", "label"]})


def duplicate_columns(m: Maker) -> Damaged:
    path = m.csv(m.table())
    path.write_text(path.read_text(encoding="utf-8").replace("number", "text", 1), encoding="utf-8")
    twice = pa.table([pa.array(m.rng.normal(size=2)), pa.array([3, 4])], names=["label", "label"])
    return Damaged("duplicate columns", path if m.rng.integers(2) else twice, LABEL)


def huge_strings(m: Maker) -> Damaged:
    table = m.table()
    for i in m.some(0.1):
        table["text"][i] = m.sentence() * int(m.rng.integers(1000, 20_000)) if m.rng.integers(2) else "x" * 300_000
    return Damaged("huge strings", m.csv(table) if m.rng.integers(2) else table, LABEL)


def mixed_types(m: Maker) -> Damaged:
    table = m.table()
    for i in m.some(0.5):
        table["number"][i] = ["three", None, True, b"\x00\x01", [1, 2], {"a": 1}, 10**30, 1 + 2j, datetime(2020, 1, 1)][
            int(m.rng.integers(9))
        ]
    return Damaged("mixed types", table, LABEL)


def mixed_json(m: Maker) -> Damaged:
    table = m.table()
    for i in m.some(0.5):
        table["number"][i] = ["three", None, True, [1, 2], {"a": 1}, 10**30][int(m.rng.integers(6))]
    path = m.folder / "table.jsonl"
    lines = [json.dumps(dict(zip(table, row)), ensure_ascii=False) for row in zip(*table.values())]
    if m.rng.integers(2):
        lines[int(m.rng.integers(m.n))] = ["{", "[1, 2]", '"text"', "{'a': 1}", "{}"][int(m.rng.integers(5))]
    path.write_text("\n".join(lines), encoding="utf-8")
    return Damaged("mixed and broken JSON lines", path, LABEL)


def nested_lists(m: Maker) -> Damaged:
    cells = [[[1, 2], [3]] if i % 2 else [] for i in range(m.n)]
    dicts = [{"a": i, "b": [i]} if i % 3 else None for i in range(m.n)]
    return Damaged("nested lists", {**m.table(), "boxes": cells, "facts": dicts}, LABEL)


def wrong_vectors(m: Maker) -> Damaged:
    cells: list = [m.rng.normal(size=4).tolist() for _ in range(m.n)]
    for i in m.some():
        cells[i] = [[], [1.0], None, [1.0, float("nan"), 2.0, 3.0], [1.0] * 9, [float("inf")] * 4][
            int(m.rng.integers(6))
        ]
    table = {
        **m.table(),
        "vector": cells if m.rng.integers(2) else [None if c is None else json.dumps(c) for c in cells],
    }
    return Damaged("wrong vectors", table, LABEL)


def outside_paths(m: Maker) -> Damaged:
    names = m.pictures()
    for i in m.some():
        names[i] = [
            "../../etc/passwd.png",
            "/etc/hostname.png",
            "~/x.png",
            "file:///etc/x.png",
            "a\\b.png",
            "." * 5000 + ".png",
        ][int(m.rng.integers(6))]
    return Damaged("paths outside", m.csv({"photo": names, **m.table()}), LABEL)


def no_files(m: Maker) -> Damaged:
    return Damaged(
        "no file is there", m.csv({"photo": [f"gone/{i}.jpg" for i in range(m.n)], "label": m.table()["label"]}), LABEL
    )


def odd_dates(m: Maker) -> Damaged:
    table = m.table()
    odd = [
        "31.02.2020",
        "0000-00-00",
        "9999-12-31",
        "yesterday",
        "2020-13-45",
        "1",
        "12/31/99",
        "2020-01-01T99:99:99",
        "0001-01-01",
    ]
    for i in m.some(0.4 if m.rng.integers(2) else 0.04):
        table["day"][i] = odd[int(m.rng.integers(len(odd)))]
    return Damaged("odd dates", m.csv(table), {**LABEL, "kinds": {"day": "datetime"}} if m.rng.integers(2) else LABEL)


def odd_booleans(m: Maker) -> Damaged:
    words = ["TRUE", "False", " yes ", "N", "1", "0", "T", "maybe", "2", "-1", "oui"]
    table = {**m.table(), "flag": [str(w) for w in m.rng.choice(words, m.n)]}
    return Damaged(
        "odd booleans", m.csv(table), {**LABEL, "kinds": {"flag": "boolean"}} if m.rng.integers(2) else LABEL
    )


def unseen_categories(m: Maker) -> Damaged:
    table = {**m.table(), "colour": [f"c{i // 2}" for i in range(m.n)]}
    return Damaged("categories seen twice", table, LABEL)


def unicode_names(m: Maker) -> Damaged:
    names = ["Größe", "写真", "тип", "a b", "🐈", "ラベル"]
    table = dict(zip(names, m.table().values()))
    return Damaged("unicode column names", m.csv(table), {"target": "ラベル"})


def awkward_names(m: Maker) -> Damaged:
    pool = [
        "a.b",
        " lead",
        "keep",
        "present",
        "row",
        "target",
        "number",
        "category",
        "image_0",
        "text_0",
        "../x",
        "a/b",
        "x" * 300,
        "self",
        "0",
        "class",
        "__init__",
    ]
    names = [str(n) for n in m.rng.choice(pool, 5, replace=False)] + ["label"]
    return Damaged("awkward column names", dict(zip(names, m.table().values())), LABEL)


def odd_numbers(m: Maker) -> Damaged:
    words = [
        ["1,234.5", "12", "7.5"],
        ["12%", "3.5 %", "100%"],
        ["1,5", "2,25", "10"],
        ["0012", "0100"],
        ["1e400", "-1e400", "3"],
        ["١٢", "1_000", "0x10"],
    ]
    cells = [str(c) for c in m.rng.choice(words[int(m.rng.integers(6))], m.n)]
    forced = {**LABEL, "kinds": {"number": "number"}} if m.rng.integers(2) else LABEL
    return Damaged(
        "oddly written numbers", m.csv({**m.table(), "number": cells}, ";" if m.rng.integers(2) else ","), forced
    )


def only_ids(m: Maker) -> Damaged:
    table = {
        "id": list(range(m.n)),
        "key": [f"k{i:05d}" for i in range(m.n)],
        "one": ["same"] * m.n,
        "label": m.table()["label"],
    }
    return Damaged("only identifiers", table, LABEL)


def odd_types(m: Maker) -> Damaged:
    n = m.n
    data = pa.table(
        {
            "decimal": pa.array([f"{i}.25" for i in range(n)]).cast(pa.decimal128(10, 2)),
            "time": pa.array(list(range(n)), pa.time32("s")),
            "duration": pa.array(list(range(n)), pa.duration("ms")),
            "dictionary": pa.array(["a", "b"] * (n // 2) + ["a"] * (n % 2)).dictionary_encode(),
            "null": pa.nulls(n),
            "view": pa.array(["x y z", "p q r"] * (n // 2) + ["s"] * (n % 2), pa.string_view()),
            "half": pa.array(np.arange(n).astype(np.float16)),
            "map": pa.array([[("a", 1)]] * n, pa.map_(pa.string(), pa.int64())),
            "far": pa.array([2**62] * (n - 1) + [-(2**62)], pa.timestamp("s")),
            "big": pa.array([2**64 - 1 - i for i in range(n)], pa.uint64()),
            "blob": pa.array([bytes([i, 255]) for i in range(n)]),
            "label": pa.array(m.table()["label"]),
        }
    )
    return Damaged(
        "odd Arrow types",
        data.select(sorted(m.rng.choice(data.column_names[:-1], 6, replace=False)) + ["label"]),
        LABEL,
    )


def not_a_table(m: Maker) -> Damaged:
    (m.folder / "notes.txt").write_text("hello")
    made = [
        m.folder / "gone.csv",
        m.folder / "notes.txt",
        m.folder,
        {"a": [1, 2], "label": [1]},
        3,
        None,
        [],
        {"a": "text"},
        {},
    ]
    return Damaged("not a table", made[m.seed // len(made) % len(made)], LABEL)  # in turn: no two seeds below 200 alike


def mixed_media(m: Maker) -> Damaged:
    cells: list = [m.png() if i % 2 else f"{i}.png" for i in range(m.n)]
    cells[0], cells[1], cells[2] = None, b"", ""
    return Damaged("paths and bytes in one column", {"photo": cells, **m.table()}, LABEL)


def class_folders(m: Maker) -> Damaged:
    for i in range(m.n):
        path = m.folder / "set" / ["cat", "dog"][i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(m.png() if i % 4 else b"broken")
    if m.rng.integers(2):
        (m.folder / "set" / "cat" / "x.wav").write_bytes(m.wav())
    return Damaged("class folders", m.folder / "set", LABEL)


def blank_texts(m: Maker) -> Damaged:
    table = m.table()
    for i in m.some(0.6):
        table["text"][i] = ["", " ", "\t\n", "\u200b", "\ufeff", "\ud7ff", "🐈" * 50, "\x01\x02"][
            int(m.rng.integers(8))
        ]
    return Damaged("blank and strange texts", table, {**LABEL, "kinds": {"text": "text"}})


DAMAGE: list[Callable[[Maker], Damaged]] = [
    ragged_csv, nul_bytes, latin1, cut_csv, truncated_pictures, all_pictures_broken, text_called_png, odd_pictures,
    picture_bombs, broken_sounds, strange_sounds, not_finite, nan_target, all_missing, mostly_missing,
    missing_target, one_class, rare_classes, all_different_target, few_rows, empty_file, no_target, unknown_kind,
    wrong_kind, two_uses, duplicate_columns, huge_strings, mixed_types, mixed_json, nested_lists, wrong_vectors,
    outside_paths, no_files, odd_dates, odd_booleans, unseen_categories, unicode_names, awkward_names, odd_numbers,
    only_ids, odd_types, not_a_table, mixed_media, class_folders, blank_texts,
]  # fmt: skip
COUNT = 200


def damaged(seed: int, folder: str | Path) -> Damaged:
    """The damaged table of a seed; its files lie in `folder`, which should be empty."""
    return DAMAGE[seed % len(DAMAGE)](Maker(seed, Path(folder)))
