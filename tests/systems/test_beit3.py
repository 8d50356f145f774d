"""BEiT-3's own claims: experts by modality, one attention, modes by what is put in; its picture half is vit_beit3."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.core.attend import recorded
from tests.contract.examples import example
from tests.parity.beit3 import CASES, NUMBERS
from tests.parity.official import as_published


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"beit3_toy"}))
def test_published_sizes_have_the_official_names_shapes_and_counts(name):
    assert as_published(name, NUMBERS[name.removeprefix("beit3_")])


@torch.no_grad()
def test_a_picture_alone_never_touches_the_experts_of_words():
    model = plait.create_model("beit3_toy").eval()
    batch = example(model)
    before = model.embed(batch)
    for name, p in model.named_parameters():
        if ".text." in name or name.startswith(("words", "places")):
            p.fill_(float("nan"))
    after = model.embed(batch)
    assert torch.equal(after["image"], before["image"]) and after["text"].isnan().all()


@torch.no_grad()
def test_both_streams_meet_in_one_attention():
    model = plait.create_model("beit3_toy").eval()
    batch = example(model)
    watched, maps = recorded(model)
    watched.fuse(batch)
    assert [m.shape[2:] for m in maps] == 2 * [(29, 29)]  # 17 of the picture and 12 words
    assert (maps[0][-1, :, :, 17 + 8 :] == 0).all()  # the last row's text is a third shorter


@torch.no_grad()
def test_a_caption_reads_the_picture_and_only_the_words_so_far():
    model = plait.create_model("beit3_toy").eval()
    batch = example(model)
    scores, keep = model.next_words(batch)
    assert torch.equal(keep, batch["keep"]["text"])
    later = {**batch, "text": batch["text"].clone()}
    later["text"][:, 6] = 63
    changed = (model.next_words(later)[0] - scores).abs().amax(-1) > 1e-6
    assert not changed[:, :6].any() and changed[:, 6].all()
    other = model.next_words({**batch, "image": batch["image"].flip(0)})[0]
    assert ((other - scores).abs().amax(-1)[[0, 2]] > 1e-6).all()


@torch.no_grad()
def test_its_picture_half_is_vit_beit3():
    model, eye = plait.create_model("beit3_toy").eval(), plait.create_model("vit_beit3_toy").eval()
    own = model.state_dict()
    state = {k: own[k] for k in eye.state_dict() if k in own}
    for i in range(2):
        for ours, theirs in (("norm", "mix.norm"), ("mix", "mix.f"), ("feed", "feed")):
            prefix = f"layers.blocks.{i}.experts.image.{ours}."
            state |= {
                f"stack.blocks.{i}.{theirs}.{k.removeprefix(prefix)}": v for k, v in own.items() if k.startswith(prefix)
            }
    missing = eye.load_state_dict(state, strict=False).missing_keys
    assert sorted(missing) == ["head.bias", "head.weight", "norm.bias", "norm.weight"]
    x = torch.rand(2, 3, 32, 32)
    streams, _ = model.inputs({"image": x})
    alone = model.read({"image": streams["image"]})["image"].x
    torch.testing.assert_close(alone, model.norms["image"](eye.tokens(x).x), rtol=1e-5, atol=1e-5)
