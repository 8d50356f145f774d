"""LLaVA in small: where the picture goes, and what is trained."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.core.memory import Memory
from plait.core.tokens import Tokens

MARK = 5


@pytest.fixture(scope="module")
def model():
    return plait.create_model("llava_toy").eval()


@torch.no_grad()
def test_a_picture_is_read_in_the_marks_place_or_before_all_words(model):
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(6, 64, (4, 7), generator=g)
    keep = torch.ones_like(ids, dtype=torch.bool)
    keep[2, :3] = keep[3, 5:] = False
    ids[0, 2] = ids[1, 0] = ids[2, 6] = MARK  # in the middle, first, last; the fourth row says nothing
    image = torch.rand(4, 3, 32, 32, generator=g)
    patches, words = model.see(image), model.words.embed(ids)
    next_ = torch.randint(6, 64, (4, 3), generator=g)
    got, _ = model.step(next_, model.prefill({"image": image, "text": ids, "keep": {"text": keep}}))
    for row in range(4):
        real = [(int(i), x) for i, x, there in zip(ids[row], words[row], keep[row]) if there]
        before = [] if row == 3 else [x for i, x in real[: [i for i, _ in real].index(MARK)]]
        after = [x for i, x in real[len(before) :] if i != MARK]
        alone = torch.stack([*before, *patches[row], *after])[None]
        memory = model.words.read(Tokens(alone, memory=Memory())).memory
        expected, _ = model.words.step(next_[row : row + 1], memory)
        torch.testing.assert_close(got[row : row + 1], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_without_a_picture_it_is_the_language_model(model):
    ids, on = torch.arange(10, 16)[None], torch.tensor([[20, 21]])
    got, _ = model.step(on, model.prefill({"text": ids}))
    torch.testing.assert_close(got, model.words(torch.cat([ids, on], 1))[:, -2:], rtol=1e-5, atol=1e-5)


def test_the_tower_is_frozen_and_its_last_layer_left_out():
    model = plait.create_model("llava_toy").train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    made = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    logits, _ = model.step(torch.tensor([[7, 8]]), model.prefill({"image": torch.rand(1, 3, 32, 32)}))
    logits.square().mean().backward()
    made.step()
    changed = {k.split(".")[0] for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"bridge", "words"}
    image = torch.rand(1, 3, 32, 32)
    seen = model.see(image)
    for p in model.vision.stack.blocks[-1].parameters():
        p.data.add_(1.0)
    assert torch.equal(model.see(image), seen)
    for p in model.vision.stack.blocks[-2].parameters():
        p.data.mul_(1.5)
    assert not torch.allclose(model.see(image), seen)


def test_what_a_table_decides_goes_on_to_the_part_that_it_is_of():
    model = plait.create_model("llava_nano", vocab=70, image=(32, 48), begin=1, end=2)
    assert model.words.words.table.num_embeddings == 70 and (model.begin, model.end) == (1, 2)
    assert model.vision.patch_embed.positions.table.shape[1] == 1 + 4 * 6
    with pytest.raises(ValueError, match="no model is named"):
        plait.create_model("llava_nano", words="lama_nano")
