"""TiC's layer against the numbers of the authors' (github.com/zs670980918/MSA-Conv), whose two CUDA kernels were run as
the unfold formulas that their own validation holds them to. They published no net around it.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from plait.core.init import initialise
from plait.core.tokens import Tokens
from plait.parts.maps import to_map, to_tokens
from plait.systems.vision.tic import AttentionConv
from tests.parity.compare import Row, count, relative_error
from tests.parity.recorded import values, weights

SYSTEM = "tic"
CASES = {"tic_toy": "the authors' layer"}
NUMBERS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


@torch.no_grad()
def parity(name: str) -> Row:
    """The worst of the layer's outputs over kernels and dilations, on a map that is not square."""
    error, theirs = 0.0, weights(NUMBERS["keys"])
    for case in NUMBERS["cases"]:
        layer = initialise(AttentionConv(8, 1, case["kernel"], case["dilation"])).eval()
        layer.qkv.weight.copy_(theirs["qkv_conv.weight"][:, :, 0, 0])
        layer.qkv.bias.copy_(theirs["qkv_conv.bias"])
        x = torch.randn(2, 8, 6, 7, generator=torch.Generator().manual_seed(case["kernel"]))
        t: Tokens = layer(to_tokens(x))
        error = max(error, relative_error(to_map(t), values(case)))
    return Row(name, "the authors' layer, recorded", count(layer), NUMBERS["parameters"], error)
