"""BEiT-3 against the numbers that the official code gave (github.com/microsoft/unilm, with
github.com/microsoft/torchscale).

Both towers alone, both streams fused, the answers to questions and the scores of words, with padded texts; of every
published size what its head gives, of pairs of pictures what goes into it too, in its own width and two layers deep.
The mask token and the two rows of each table of positions that ours leaves out are in none of its counts.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

import plait
from plait.core.catalog import build, systems
from tests.parity.compare import Row, count, relative_error
from tests.parity.norms import epsilons, scales
from tests.parity.official import as_published
from tests.parity.recorded import expand, noise, values, weights

SYSTEM = "beit3"
CASES = {f"{SYSTEM}_{size}": "official" for size in ("toy", *systems()[SYSTEM].weights)}
EVERY = dict(pair=1, fused=17, image=11, text=11, answer=61, words=2003, asked=2003)  # of which numbers were kept
NUMBERS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
HEADS = {
    "retrieval": dict(answers=0, captions=False),
    "answers": dict(embed=False, captions=False, normed=False),
    "captioning": dict(embed=False, answers=0),
}


def unread(keys: dict[str, list]) -> int:
    """How many numbers of the official model ours leaves out: the mask token, and two rows of each table of
    positions."""
    return 5 * expand(keys)["beit3.vision_embed.mask_token"][-1]


def made(name: str, head: str) -> nn.Module:
    public = weights(NUMBERS[head]["keys"])
    if "logit_scale" in public:
        public["logit_scale"] = torch.tensor(2.0)
    model = plait.load_weights(plait.create_model(name, length=14, **HEADS[head]).eval(), public, "official")
    assert count(model) == NUMBERS[head]["parameters"] - unread(NUMBERS[head]["keys"])
    assert set(epsilons(model)) == {1e-5}
    return model


def asked(side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two pictures of this side, texts of nine and seven words, and which of these are real."""
    g = torch.Generator().manual_seed(side)
    image, text = torch.randn(2, 3, side, side, generator=g), torch.randint(5, 64000, (2, 9), generator=g)
    return image, text, torch.arange(9) < torch.tensor([[9], [7]])


def published(name: str, facts: dict) -> Row:
    """The worst of what the heads give; a caption's next word is also asked for by a masked one."""
    whole = build(name)
    told = f"official, recorded, {facts['depth']} of {len(whole.layers.blocks)} layers"
    row = Row(name, told, count(whole), facts["parameters"], float("inf"), "layers")
    if not as_published(name, facts):
        return row
    ours = plait.create_model(name, depth=facts["depth"]).eval()
    public = {k: noise(k, tuple(v.shape)) for k, v in plait.save_weights(ours, "official").items()}
    plait.load_weights(ours, public | {k: torch.tensor(2.0) for k in ("logit_scale",) if k in public}, "official")
    image, text, keep = asked(ours.blanks[ours.eyes[0]][0][1])
    batch = {"image": image, "text": text, "keep": {"text": keep}}
    if ours.project is not None:
        found = ours.embed(batch)
    elif len(ours.eyes) > 1:
        both = ours({"image_0": batch.pop("image"), "image_1": image.flip(0) * 0.7 + 0.1, **batch})
        found = {"fused": both["fused"], "pair": both["answer"]}
    elif ours.answer is not None:
        found = {"answer": ours(batch)["answer"]}
    else:
        start = ours.prefill({"image": image, "text": text[:, :5]})
        found = {"words": ours.next_words(batch)[0][:, 5], "asked": ours.step(text[:, 5:6], start)[0][:, 0]}
    theirs = facts["outputs"]
    assert found.keys() == theirs.keys() and scales(ours) == facts["norms"]
    errors = (relative_error(found[k].flatten()[:: EVERY[k]], torch.tensor(theirs[k])) for k in theirs)
    return row._replace(error=max(errors))


@torch.no_grad()
def parity(name: str) -> Row:
    if (size := name.removeprefix(f"{SYSTEM}_")) != "toy":
        return published(name, NUMBERS[size])
    g = torch.Generator().manual_seed(3)
    batch = {"image": torch.randn(3, 3, 32, 32, generator=g), "text": torch.randint(5, 64, (3, 12), generator=g)}
    batch["keep"] = {"text": torch.arange(12) < torch.tensor([12, 9, 5])[:, None]}
    theirs = {k: values(v) for k, v in NUMBERS["outputs"].items()}
    towers, answers, captions = (made(name, head) for head in HEADS)
    vectors, fused = towers.embed(batch), towers.read(towers.inputs(batch)[0])
    pairs = [
        (vectors["image"], theirs["image"]),
        (vectors["text"], theirs["text"]),
        (fused["image"].x[:, ::4], theirs["fused_image"]),
        (fused["text"].x[:, :5], theirs["fused_text"]),
        (answers(batch)["answer"], theirs["answer"]),
        (captions.next_words(batch)[0][0, :6], theirs["words"]),
    ]
    theirs_count = NUMBERS["retrieval"]["parameters"] - unread(NUMBERS["retrieval"]["keys"])
    return Row(name, "official, recorded", count(towers), theirs_count, max(relative_error(*p) for p in pairs))
