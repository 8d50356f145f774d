"""A system bound through each role: what it is given, and what it gives."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.errors import UsageError
from plait.tasks.bind import bind, drop_modalities

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
SLOTS = {
    "picture": {"kind": "image", "size": (32, 32)},
    "other": {"kind": "image", "size": (16, 16)},
    "number": {"kind": "number", "features": 3},
    "category": {"kind": "category", "sizes": (4, 3)},
}


@pytest.fixture(scope="module")
def auto():
    return bind(plait.create_model("auto_toy", slots=SLOTS).eval(), "fuser", SLOTS, MEAN, STD)


def batch(rows: int = 3) -> dict:
    g = torch.Generator().manual_seed(0)
    return {
        "picture": torch.rand(rows, 3, 32, 32, generator=g),
        "other": torch.rand(rows, 3, 16, 16, generator=g),
        "number": torch.randn(rows, 3, generator=g),
        "category": torch.tensor([[1, 2], [0, 1], [3, 0]])[:rows],
        "keep": {
            "number": torch.tensor([[True, False, True]] * rows),
            "category": torch.ones(rows, 2, dtype=torch.bool),
        },
        "present": {s: torch.tensor([True, s != "picture", True])[:rows] for s in SLOTS},
    }


def test_pictures_are_normalised_by_their_kind_and_not_by_their_slots_name(auto) -> None:
    given = batch()
    ready = auto.prepared(given)
    for slot in ("picture", "other"):
        for c in range(3):
            torch.testing.assert_close(ready[slot][:, c], (given[slot][:, c] - MEAN[c]) / STD[c])
        torch.testing.assert_close(auto.preprocess[slot].inverse(ready[slot]), given[slot])
    assert ready["number"] is given["number"] and ready["present"]["picture"].tolist() == [True, False, True]


def test_a_slot_that_is_not_in_the_batch_is_absent_and_what_is_no_slot_is_left_out(auto) -> None:
    given = batch() | {"row": torch.arange(3), "target": {"y": torch.zeros(3)}}
    given.pop("other"), given["present"].pop("other"), given["present"].pop("number")
    ready = auto.prepared(given)
    assert not ready["present"]["other"].any() and ready["present"]["number"].all()
    assert set(ready) == {"picture", "number", "category", "present", "keep"}


def test_what_a_linear_model_reads(auto) -> None:
    assert auto.raw_widths == {"number": 6, "category": 7}
    raw = auto.raw(auto.prepared(batch()))
    x = batch()["number"]
    for i, row in enumerate(raw["number"]):
        assert row.tolist() == [x[i, 0].item(), 0, x[i, 2].item(), 0, 1, 0]  # a missing number is a flag
    assert raw["category"].tolist() == [[0, 1, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1, 0], [0, 0, 0, 1, 0, 0, 0]]


def test_of_very_many_categories_a_linear_model_reads_the_first() -> None:
    """Values are numbered by how often they are there: none is lost at once, however many there are."""
    for sizes, shown in (((1970, 30), (1970, 30)), ((1990, 30), (1970, 30)), ((9000, 5000, 9), (995, 995, 9))):
        slots = {"category": {"kind": "category", "sizes": sizes}, "number": {"kind": "number", "features": 2}}
        made = bind(plait.create_model("auto_toy", slots=slots), "fuser", slots)
        assert made.raw_widths == {"number": 4, "category": sum(shown)} and sum(shown) <= 2000
        last = torch.tensor([[n - 1 for n in shown], [0] * len(sizes), [n - 1 for n in sizes]])
        ready = {"category": last, "number": torch.zeros(3, 2), "keep": {}}
        raw = made.raw(ready)["category"]
        assert raw.shape == (3, sum(shown)) and raw[0].sum() == len(sizes) and not raw[1].any()
        assert raw[2].sum() == sum(a == b for a, b in zip(shown, sizes))
    slots = {"category": {"kind": "category", "sizes": (2,) * 2001}, "number": {"kind": "number", "features": 2}}
    assert bind(plait.create_model("auto_toy", slots=slots), "fuser", slots).raw_widths == {"number": 4}


def test_a_fuser_gives_parts_and_the_fusion_sees_what_is_visible(auto) -> None:
    f = auto.features(batch())
    assert f.fused.shape == (3, auto.width) and {s: p.shape[1] for s, p in f.parts.items()} == auto.part_widths
    assert not f.parts["picture"][1].any() and f.parts["picture"][0].any() and f.vectors.keys() == SLOTS.keys()
    hidden = batch() | {"visible": {"number": torch.zeros(3, dtype=torch.bool)}}
    g = auto.features(hidden)
    assert not torch.allclose(f.fused, g.fused) and torch.equal(f.parts["number"], g.parts["number"])
    assert not g.counted()["number"].any() and g.present["number"].all()


def test_backbones_embedders_and_writers() -> None:
    slots = {"image": {"kind": "image", "size": (32, 32)}}
    system = plait.create_model("vit_toy").eval()
    made = bind(system, "backbone", slots, MEAN, STD)
    x = torch.rand(2, 3, 32, 32)
    scaled = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(made.features({"image": x}).fused, system.pool(system.tokens(scaled)))
    assert made.raw_widths == made.part_widths == {} and made.width == system.width
    pooled = system.pool(system.tokens(scaled))
    torch.testing.assert_close(made.vectors({"image": x})["image"], pooled / pooled.norm(dim=1, keepdim=True))
    both = {"image": slots["image"], "text": {"kind": "text", "vocab": 64}}
    pair = bind(plait.create_model("clip_toy").eval(), "embedder", both)
    f = pair.features({"image": x, "text": torch.randint(5, 64, (2, 12))})
    e = pair.system.embed_width
    assert f.fused.shape == (2, 3 * e) == (2, pair.width)
    torch.testing.assert_close(f.fused[:, 2 * e :], f.fused[:, :e] * f.fused[:, e : 2 * e])
    torch.testing.assert_close(f.fused[:, : 2 * e].square().mean(1), torch.ones(2))
    alone = bind(plait.create_model("sentence_encoder_toy").eval(), "embedder", {"text": both["text"]})
    words = {"text": torch.randint(5, 64, (2, 12))}
    e, f = alone.system.embed_width, alone.features(words)
    torch.testing.assert_close(f.fused, e**0.5 * alone.vectors(words)["text"])
    assert alone.width == e
    with pytest.raises(UsageError, match="no vectors"):
        bind(plait.create_model("git_toy"), "generator", both).features({"image": x})


def test_dropped_modalities_leave_each_row_one_that_it_had() -> None:
    g = torch.Generator().manual_seed(0)
    there = {"a": torch.rand(4000, generator=g) < 0.7, "b": torch.rand(4000, generator=g) < 0.7}
    left = drop_modalities(there, 0.5, g)
    assert all((left[s] <= there[s]).all() for s in there)
    assert torch.equal(left["a"] | left["b"], there["a"] | there["b"])
    both = there["a"] & there["b"]
    lost = (both & ~(left["a"] & left["b"])).sum() / both.sum()
    assert 0.34 < lost < 0.41  # three of four draws take something from half of the rows
    assert all(torch.equal(v, there[s]) for s, v in drop_modalities(there, 0.0, g).items())
