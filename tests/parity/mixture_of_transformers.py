"""Mixture-of-Transformers' layers against the numbers that the official code gave
(github.com/facebookresearch/Mixture-of-Transformers).

It publishes a layer's two steps, which its page adds up to layers, and nothing around them. They run once three slips
are mended: they hand nn.Linear an argument and nn.MultiheadAttention two that these have not, so that plain attention
stood there, and what merges modalities made room for the first one's tokens alone. mixture_of_transformers.json holds,
of a small layer for six modalities whose queries and keys are normed and of a layer of each of the paper's sizes for
three, the digest of the keys, the number of parameters, eps, and what it made of one sequence in which modalities come
again; of the small one also with each token seeing those before it alone.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

import plait
from plait.core.block import Stack
from plait.core.catalog import build, model_info
from plait.core.tokens import Tokens
from plait.core.weights import convert, load_strict
from plait.systems.unified.mixture_of_transformers import RULES
from tests.parity.compare import Row, count, relative_error
from tests.parity.norms import scales
from tests.parity.official import digest
from tests.parity.recorded import noise

SYSTEM, CUTS = "mixture_of_transformers", True
NUMBERS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
CASES = {f"{SYSTEM}_{size}": "official" for size in ("toy", *NUMBERS["sizes"])}
FEW = {"text": dict(kind="text", vocab=64)}  # words, which the layers know nothing of
THREE = (("text", 4), ("image", 6), ("text", 3), ("audio", 5), ("image", 2))
SIX = (
    *(("number", 2), ("text", 3), ("image", 4), ("category", 1)),
    *(("text", 2), ("audio", 3), ("vector", 1), ("image", 4)),
)


def sequence(width: int, kinds: tuple[tuple[str, int], ...]) -> Tokens:
    """Two sequences of 20 tokens of these kinds."""
    return Tokens(torch.randn(2, 20, width, generator=torch.Generator().manual_seed(5)), kinds=kinds)


def layers(model: nn.Module, facts: dict) -> Stack | None:
    """The layers of `model`, which has no storage, with the weights of the recorded run; None where their names, shapes
    or eps are not those of that run."""
    shapes = {k: v for k, v in plait.save_weights(model, "official").items() if k.startswith("layers.")}
    if digest(shapes) != facts["digest"] or {*scales(model.stack)} != {f"{eps:.0e}" for eps in facts["eps"]}:
        return None
    state = convert({k: noise(k, tuple(v.shape)) for k, v in shapes.items()}, RULES["official"])
    stack = model.stack.to_empty(device="cpu").eval()
    load_strict(stack, {k.removeprefix("stack."): v for k, v in state.items()})
    return stack


def apart(stack: Stack, t: Tokens, kept: list[float], every: int) -> float:
    return relative_error(stack(t).x.flatten()[::every], torch.tensor(kept))


@torch.no_grad()
def parity(name: str) -> Row:
    size = name.removeprefix(f"{SYSTEM}_")
    toy, facts = size == "toy", NUMBERS["toy"] if size == "toy" else NUMBERS["sizes"][size]
    model = build(name, depth=1, slots=model_info(name).arguments["slots"] | FEW)
    parameters, stack, error = count(model.stack), layers(model, facts), float("inf")
    if stack is not None:
        t, every = sequence(model.width, SIX if toy else THREE), 3 if toy else 397
        error = apart(stack, t, facts["output"], every)
    if stack is not None and toy:
        before = torch.ones(20, 20, dtype=torch.bool).tril()
        error = max(error, apart(stack, t.reading(allow=before), facts["causal"], every))
    told = "official layer, recorded" if toy else f"official, recorded, 1 of {len(build(name).stack.blocks)} layers"
    return Row(name, told, parameters, facts["parameters"], error, "output" if toy else "layers")
