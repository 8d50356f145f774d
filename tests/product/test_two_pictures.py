"""Tables with two columns of pictures, for systems that read two."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

import plait
from plait.core.catalog import build, model_info, slots_of, systems
from plait.errors import UsageError
from plait.runs.console import Console
from tests.product.test_caption import COLOURS, png

FAST = dict(
    task="classify", target="colour", split="split", image_size=32, precision="fp32", augment=0.0, batch_size=32
)
WHICH = ("first", "second")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def table(n: int, seed: int = 0) -> dict[str, list]:
    """Two squares, each of a colour, and which of them is asked for."""
    rng = np.random.default_rng(seed)
    rows: dict[str, list] = {"left": [], "right": [], "asked": [], "colour": [], "split": []}
    for i in range(n):
        shown, which = rng.choice(list(COLOURS), 2, replace=False), int(rng.integers(2))
        for column, colour in zip(("left", "right"), shown):
            rows[column].append(png(np.broadcast_to(np.uint8(COLOURS[colour]), (32, 32, 3)).copy()))
        rows["asked"].append(f"the colour of the {WHICH[which]}")
        rows["colour"].append(str(shown[which]))
        rows["split"].append("test" if i % 5 == 0 else "val" if i % 5 == 1 else "train")
    return rows


@pytest.fixture
def beit3_pocket(monkeypatch):
    """BEiT-3's toy, of pairs."""
    found, kept = systems()["beit3"], {k: v for k, v in systems()["beit3"].sizes["toy"].items() if k != "captions"}
    monkeypatch.setitem(found.sizes, "pocket", kept | dict(embed=False, pair=True, answers=2))
    monkeypatch.setitem(found.size_takes, "pocket", found.size_takes["nano_nlvr2"])
    monkeypatch.setitem(found.size_roles, "pocket", found.size_roles["nano_nlvr2"])


def fit(rows: dict, system: str, out, **options):
    kinds = {"asked": "text"}
    return plait.fit(
        pa.table(rows), out=out, console=Console(quiet=True), system=system, **FAST | dict(kinds=kinds) | options
    )


@pytest.mark.parametrize("system", ["albef_nlvr_toy", "beit3_pocket"])
def test_which_picture_is_which_is_learnt(system, beit3_pocket, tmp_path):
    rows = table(600)
    run = fit(rows, system, tmp_path / "run", epochs=15, lr=2e-3)
    found = run.assessments["test"].scores[0]
    print(found)
    assert [s.name for s in run.schema.slots] == ["image_0", "image_1", "text"]
    assert found.name == "accuracy" and found.low > 0.6  # at most 0.5 without the text, or by one of the pictures
    fresh = table(60, seed=5)
    inputs, right = {k: fresh[k] for k in ("left", "right", "asked")}, fresh["colour"]
    loaded = plait.load(tmp_path / "run")
    said = loaded.predict(pa.table(inputs))["colour"].to_pylist()
    turned = loaded.predict(pa.table(inputs | {"left": fresh["right"], "right": fresh["left"]}))["colour"].to_pylist()
    assert np.mean([a == b for a, b in zip(said, right)]) > 0.6
    assert np.mean([a == b for a, b in zip(turned, right)]) < 0.4  # the other's colour
    lacking = loaded.predict(pa.table({k: inputs[k] for k in ("left", "asked")}))
    assert set(lacking["colour"].to_pylist()) <= {*COLOURS}


def test_one_column_of_pictures_is_the_first(tmp_path):
    rows = table(60)
    rows.pop("right")
    run = fit(rows, "albef_nlvr_toy", tmp_path / "run", epochs=1)
    assert [s.name for s in run.schema.slots] == ["image_0", "text"]


def test_more_pictures_than_it_reads_are_refused(tmp_path):
    rows = table(60)
    with pytest.raises(UsageError, match="it reads image, image, text"):
        fit(rows | {"middle": rows["left"]}, "albef_nlvr_toy", tmp_path / "run", epochs=1)
    with pytest.raises(UsageError, match=r"would: [\w, ]*albef_nlvr"):
        fit(rows, "vilt_toy", tmp_path / "run", epochs=1)


def test_slots_are_called_by_their_kinds_and_numbered_where_there_are_several():
    assert slots_of(("image", "text")) == {"image": "image", "text": "text"}
    assert slots_of(("image", "text", "image")) == {"image_0": "image", "text": "text", "image_1": "image"}
    for name in ("albef_nlvr_toy", "vilt_toy", "beit3_nano", "beit3_nano_nlvr2", "beit3_base_patch16_224_nlvr2"):
        assert tuple(model_info(name).slots) == build(name).takes
