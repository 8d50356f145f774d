"""ALBEF for pairs of pictures against the numbers that the official code gave (github.com/salesforce/ALBEF with
transformers 4.8.1 and timm 0.4.9).

It was run once, with weights and inputs that are made again from the names of its keys, as those of `albef`: in the
toy's size, and each published size in its own width, one layer of each kind deep. Of two layers that share keys and
values the second's name counts. Of the pre-trained file the names and shapes are those of its model, with the heads of
its objective, which are dropped and in no count.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from torch import Tensor, nn

import plait
from plait.core.catalog import build, systems
from plait.core.weights import State
from tests.parity import albef
from tests.parity.compare import Row, count, relative_error
from tests.parity.norms import scales
from tests.parity.recorded import Shapes, expand, learned

SYSTEM = "albef_nlvr"
CASES = {f"{SYSTEM}_{size}": "official" for size in ("toy", *systems()[SYSTEM].weights)}
CUTS = True
EVERY = dict(fused=17, answer=1)  # of which numbers were kept
NUMBERS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
BESIDE = ("vision_proj", "text_proj", "temp", "ta_head")  # of the pre-training objective


def weights(shapes: Shapes, first: int) -> State:
    """Noise by names; of the layers from `first` on the first of each two has the second's keys and values."""

    def second(name: str) -> str:
        found = re.search(r"layer\.(\d+)\.crossattention\.self\.(key|value)", name)
        if found is None or (int(found[1]) - first) % 2:
            return name
        return name.replace(f"layer.{found[1]}.", f"layer.{int(found[1]) + 1}.")

    return {name: albef._noise(second(name), shape) for name, shape in shapes.items()}


def pairs(batch: dict) -> dict:
    """The batch with another picture beside each."""
    image = batch.pop("image")
    return batch | {"image_0": image, "image_1": image.flip(0) * 0.7 + 0.1}


def loaded(ours: nn.Module) -> nn.Module:
    shapes = {name: tuple(t.shape) for name, t in plait.save_weights(ours, "official").items()}
    return plait.load_weights(ours, weights(shapes, len(ours.reader.blocks)), "official")


def published(name: str, facts: dict) -> Row:
    whole = build(name)
    row = Row(name, "official, recorded, 4 of 30 layers", count(whole), facts["parameters"], float("inf"), "layers")
    shapes = {k: s for k, s in expand(facts["keys"]).items() if s and not k.endswith("position_ids")}
    kept = {k: s for k, s in shapes.items() if not k.startswith(BESIDE)}
    if learned(plait.save_weights(whole, "official")) != kept:
        return row
    ours = loaded(plait.create_model(name, image_depth=1, text_depth=1, fusion_depth=1).eval())
    found = ours(pairs(albef.asked(ours.blanks["image_0"][0][1])))
    theirs = facts["outputs"]
    assert scales(ours) == facts["norms"] and found.keys() == theirs.keys()
    errors = (relative_error(found[k].flatten()[:: EVERY[k]], torch.tensor(theirs[k])) for k in theirs)
    return row._replace(error=max(errors))


@torch.no_grad()
def parity(name: str) -> Row:
    if (size := name.removeprefix(f"{SYSTEM}_")) != "toy":
        return published(name, NUMBERS[size])
    facts, ours = NUMBERS["toy"], plait.create_model(name).eval()
    plait.load_weights(ours, weights(expand(facts["keys"]), len(ours.reader.blocks)), "official")
    batch = pairs(albef.inputs())
    t, answer = ours.read(batch), ours(batch)["answer"]
    found: dict[str, Tensor] = {"fused": t.x[:, 0], "token": t.x[:, 3], "answer": answer}
    error = max(relative_error(v.flatten(), torch.tensor(facts["outputs"][k])) for k, v in found.items())
    return Row(name, "official, recorded", count(ours), facts["parameters"], error)
