"""The check of a table, augmentation, and the glyph sample."""

from __future__ import annotations

import json
import unicodedata

import numpy as np
import pytest
import torch

from plait.data.augment import augment
from plait.data.check import check_table
from plait.data.kinds.audio import augment_sounds
from plait.data.kinds.moved import augment_images
from plait.data.rows import Rows
from plait.data.samples import SEEN, UNSEEN, glyphs
from plait.data.schema import Schema
from plait.data.table import read_table
from tests.data.maker import Maker


def checked(cells: dict, target: str, root=None, **arguments) -> dict:
    table = read_table(cells, root=root)
    schema = Schema.guess(table, target=target, **arguments).fit(table, np.arange(len(table)))
    return json.loads(json.dumps(check_table(table, schema, Rows(table, schema))))


def leaking(cells: dict, target: str, **arguments) -> dict[str, str]:
    return {leak["column"]: leak["sentence"] for leak in checked(cells, target, **arguments)["leaks"]}


def test_leaks_are_found_and_honest_columns_are_not(tmp_path) -> None:
    rng = np.random.default_rng(0)
    n = 200
    y = rng.integers(0, 3, n)
    names = np.asarray(["cat", "dog", "emu"])[y]
    noisy = np.where(rng.random(n) < 0.9, y, rng.integers(0, 3, n))
    cells = {
        "copy": names.tolist(),
        "code": [["A", "B", "C"][k] for k in y],
        "half": [["A", "B", "B"][k] for k in y],
        "noisy": [f"n{k}" for k in noisy],
        "value": rng.normal(size=n).tolist(),
        "told": [f"seen at {i} o'clock: a {name} again" for i, name in enumerate(names)],
        "plain": [f"word {i} and nothing else cats dogs" for i in range(n)],
        "label": names.tolist(),
    }
    found = leaking(cells, "label")
    assert set(found) == {"copy", "code", "told"}
    assert "copy" in found["copy"] and "one-to-one" in found["code"] and "200 of 200" in found["told"]


def test_correlated_numbers_leak() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=300)
    found = leaking(
        {"scaled": (3 * y + 1).tolist(), "close": (y + rng.normal(size=300)).tolist(), "y": y.tolist()}, "y"
    )
    assert set(found) == {"scaled"} and "correlation" in found["scaled"]


def test_file_names_that_hold_the_label(tmp_path) -> None:
    maker = Maker(0, tmp_path)
    names = []
    for i in range(20):
        path = tmp_path / ["cat", "dog"][i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(maker.png())
        names.append(path.relative_to(tmp_path).as_posix())
    report = checked({"photo": names, "label": ["cat", "dog"] * 10}, "label", root=tmp_path)
    assert [(leak["column"], leak["read"]) for leak in report["leaks"]] == [("photo", False)]


def test_the_report_of_columns() -> None:
    cells = {
        "x": [1.0, float("inf"), None, 2.0] * 3,
        "t": ["one two three", "four five six", "", "seven eight nine"] * 3,
        "y": [0, 1] * 6,
        "c": ["k"] * 12,
    }
    report = checked(cells, "y", kinds={"t": "text"})
    by = {column["name"]: column for column in report["columns"]}
    assert by["x"]["missing"] == 3 and by["x"]["bad"] == {"not a finite number": 3}
    assert by["t"]["missing"] == 3 and by["c"]["constant"] and by["c"]["use"] == "ignored"
    assert report["rows"] == 12 and report["repeated_rows"] == 8 and report["bad_cells"] == 3


@pytest.fixture(scope="module")
def batch_and_schema(tmp_path_factory):
    folder = tmp_path_factory.mktemp("augment")
    maker = Maker(3, folder)
    maker.n = 12
    cells = {
        "photo": [maker.png(40, 40) for _ in range(12)],
        "clip": [maker.wav(0.1 + i / 50) for i in range(12)],
        **maker.table(),
    }
    cells["photo"][2], cells["clip"][3], cells["text"][4] = None, None, None
    table = read_table(cells)
    schema = Schema.guess(table, target="label", kinds={"text": "text"}).fit(table, np.arange(12))
    return Rows(table, schema).batch(np.arange(12)), schema


def test_augment_is_deterministic_and_keeps_what_is_true(batch_and_schema) -> None:
    batch, schema = batch_and_schema
    before = {k: v.clone() for k, v in batch.items() if torch.is_tensor(v)}
    one, two, three = (augment(batch, schema, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    for slot in ("image_0", "audio_0", "text_0"):
        assert torch.equal(one[slot], two[slot]) and not torch.equal(one[slot], three[slot])
        assert (
            not torch.equal(one[slot], batch[slot])
            and one[slot].shape == batch[slot].shape
            and one[slot].dtype == batch[slot].dtype
        )
    assert all(torch.equal(batch[k], v) for k, v in before.items()), "the given batch was changed"
    assert not one["image_0"][2].any() and not one["audio_0"][3].any() and not one["text_0"][4].any()
    assert 0 <= one["image_0"].min() and one["image_0"].max() <= 1 and one["audio_0"].abs().max() <= 1
    assert not one["audio_0"][~batch["keep"]["audio_0"]].any()
    changed = one["text_0"] != batch["text_0"]
    assert (one["text_0"][changed] == 4).all() and (batch["text_0"][changed] > 4).all()
    assert torch.equal(one["number"], batch["number"]) and torch.equal(one["category"], batch["category"])


def test_strength_zero_changes_nothing(batch_and_schema) -> None:
    batch, schema = batch_and_schema
    same = augment(batch, schema, torch.Generator().manual_seed(0), strength=0)
    assert all(same[k] is batch[k] for k in batch)


def test_weak_changes_are_small_and_only_photos_are_mirrored() -> None:
    ramp = torch.linspace(0, 1, 40).expand(64, 3, 20, 40).contiguous()
    weak = augment_images(ramp, torch.Generator().manual_seed(0), 1e-4, mirror=False)
    assert (weak - ramp).abs().mean() < 0.01
    mirrored = augment_images(ramp, torch.Generator().manual_seed(0), 1e-4, mirror=True)
    rising = mirrored[:, 0, 10, 35] > mirrored[:, 0, 10, 5]
    assert 16 <= int(rising.sum()) <= 48
    assert (mirrored[~rising] - ramp[~rising].flip(-1)).abs().mean() < 0.01


def test_glyphs(tmp_path) -> None:
    table = read_table(glyphs(tmp_path))
    rows = table.data.to_pydict()
    assert set(rows) == {"image", "text", "character", "typeface", "split", "same"}
    characters = set(rows["character"])
    assert len(characters) > 2000
    assert all(unicodedata.name(c).lower() == t for c, t in zip(rows["character"], rows["text"]))
    of = {
        name: {i for i, s in enumerate(rows["split"]) if s == name}
        for name in ("train", "val", "typefaces", "characters")
    }
    assert sum(map(len, of.values())) == len(table)
    seen = {rows["character"][i] for i in of["train"]}
    held = {rows["character"][i] for i in of["characters"]}
    assert not seen & held and abs(len(held) - len(characters) / 10) <= 1
    assert {rows["typeface"][i] for i in of["typefaces"]} == set(UNSEEN) and {
        rows["typeface"][i] for i in of["train"]
    } == set(SEEN)
    schema = Schema.guess(table, inputs=["image", "text"], split="split").fit(
        table, np.asarray(sorted(of["train"])[:500])
    )
    batch = Rows(table.take(np.arange(2296)), schema).batch(np.arange(2296))
    flat = {}
    for i, picture in enumerate(batch["image_0"].flatten(1).numpy()):
        key = (rows["split"][i], rows["typeface"][i], picture.tobytes())
        assert flat.setdefault(key, rows["same"][i]) == rows["same"][i]
    assert len(set(flat)) == len({rows["same"][i] for i in range(2296)}) < 2296, (
        "characters that look alike share a number"
    )


def test_a_sound_that_is_to_be_whole_is_not_shifted() -> None:
    x, keep = torch.zeros(8, 1000), torch.ones(8, 1000, dtype=torch.bool)
    x[:, 0], x[:, -1] = 0.5, -0.5
    whole = augment_sounds(x, keep, torch.Generator().manual_seed(0), 1.0, shift=0.0)
    moved = augment_sounds(x, keep, torch.Generator().manual_seed(0), 1.0)
    assert (whole[:, 0] > 0.2).all() and (whole[:, -1] < -0.2).all()
    assert ((moved[:, 0] < 0.2) | (moved[:, -1] > -0.2)).sum() >= 6  # a shift may be of less than a sample
