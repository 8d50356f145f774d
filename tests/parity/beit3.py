"""BEiT-3 against the numbers that the official code gave (github.com/microsoft/unilm, with
github.com/microsoft/torchscale).

Both towers alone, both streams fused, the answers to questions and the scores of words, with padded texts.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

import plait
from tests.parity.compare import Row, count, relative_error
from tests.parity.norms import epsilons
from tests.parity.recorded import expand, values, weights

SYSTEM = "beit3"
CASES = {"beit3_toy": "official"}
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


@torch.no_grad()
def parity(name: str) -> Row:
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
