"""ViT-ResNAS against the numbers of the official code (github.com/yilunliao/vit-search, nets/vit_sr_supernet.py), its
supernet's too."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch.func import functional_call

import plait
from plait.core.catalog import systems
from plait.systems.vision.s3_autoformer_v2 import subnet
from plait.systems.vision.vit_resnas import PIECES
from tests.parity.compare import Row, relative_error
from tests.parity.official import against, picture
from tests.parity.recorded import noise

SYSTEM = "vit_resnas"
CASES = {f"{SYSTEM}_{size}": "official" for size in ("toy", *systems()[SYSTEM].weights)}
NUMBERS = Path(__file__).with_suffix(".json")


def parity(name: str) -> Row:
    return against(SYSTEM, name.removeprefix(f"{SYSTEM}_"), NUMBERS)


@torch.no_grad()
def slices() -> list[float]:
    """The error of every recorded subnet, which the official supernet ran by masking itself, and ours by slicing."""
    errors = []
    for run in json.loads(NUMBERS.read_text(encoding="utf-8"))["toy"]["masked"]:
        supernet = plait.create_model("vit_resnas_toy", **run["supernet"]).eval()
        state = {k: noise(k, tuple(v.shape)) for k, v in plait.save_weights(supernet, "official").items()}
        plait.load_weights(supernet, state, "official")
        small = plait.create_model("vit_resnas_toy", **run["arguments"]).eval()
        norms = {k: v for k, v in supernet.named_buffers() if k.startswith("stem.")}  # the stem is not searched
        out = functional_call(small, subnet(supernet, small, PIECES) | norms, picture(*run["picture"]))
        errors.append(relative_error(out, torch.tensor(run["logits"])))
    return errors
