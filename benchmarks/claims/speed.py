"""What is said to be faster, in CPU time of one thread, in turns, so that who else is busy does not count."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import torch
from torch import nn

import plait
from benchmarks.claims.trial import Trial
from benchmarks.claims.verdict import Rule
from plait.core.surgery import fold_norms


def seconds(f: Callable[[], object]) -> float:
    start = time.process_time()
    f()
    return time.process_time() - start


def turns(how: str, rules: tuple[Rule, ...], make: Callable[[], dict[str, Callable[[], object]]]) -> Trial:
    """Each seed is a turn of all; what comes first in it changes. make() -> what is to be timed, by its arm."""
    ready: dict[str, Callable[[], object]] = {}

    def run(seed: int) -> dict[str, float]:
        if not ready:
            ready.update(make())
            for f in ready.values():
                f()  # what is done once
        order = list(ready) if seed % 2 else list(ready)[::-1]
        found = {name: seconds(ready[name]) for name in order}
        return {name: found[name] for name in ready}

    return Trial(how, "CPU seconds", rules, run, seeds=5)


def step(model: nn.Module, *inputs: torch.Tensor) -> Callable[[], None]:
    def one() -> None:
        model.zero_grad()
        model(*inputs).square().sum().backward()

    return one


def forward(model: nn.Module, *inputs: torch.Tensor) -> Callable[[], None]:
    def one() -> None:
        with torch.no_grad():
            model(*inputs)

    return one


def texts() -> dict[str, Callable[[], object]]:
    ids = torch.randint(1, 8000, (2, 512))
    size = dict(length=512, width=256, depth=2, num_classes=10)
    return {
        "FNet": step(plait.create_model("fnet_nano", **size).train(), ids),
        "BERT": step(plait.create_model("bert_nano", heads=4, **size).train(), ids),
    }


def folded(size: str, *changes: str) -> Callable[[], dict[str, Callable[[], object]]]:
    def make() -> dict[str, Callable[[], object]]:
        model = plait.create_model(size, changes=changes).eval()
        x = torch.rand(4, 3, 224, 224)
        arms = {"folded": forward(fold_norms(copy.deepcopy(model)), x), "as trained": forward(model, x)}
        return arms | ({"layer norm": forward(plait.create_model(size).eval(), x)} if changes else {})

    return make


def sizes(*names: str) -> Callable[[], dict[str, Callable[[], object]]]:
    x = torch.rand(4, 3, 224, 224)
    return lambda: {name: forward(plait.create_model(name).eval(), x) for name in names}


def large_pictures() -> dict[str, Callable[[], object]]:
    small, large = (torch.rand(1, 3, side, side) for side in (512, 1024))
    rwkv = plait.create_model("vision_rwkv_tiny", depth=2).eval()
    vit = plait.create_model("vit_tiny_patch16_224", depth=2).eval()
    return {
        "RWKV, 1024": forward(rwkv, large),
        "ViT, 1024": forward(vit, large),
        "RWKV, four of 512": lambda: [forward(rwkv, small)() for _ in range(4)],
        "ViT, four of 512": lambda: [forward(vit, small)() for _ in range(4)],
    }


TRIALS = {
    "fnet": turns(
        "a training step of two texts of 512 words, two layers 256 wide", (Rule("FNet", "lower", "BERT"),), texts
    ),
    "efficientvit_m": turns(
        "m0, four pictures of 224", (Rule("folded", "lower", "as trained"),), folded("efficientvit_m_m0")
    ),
    "hiera": turns(
        "four pictures of 224",
        (Rule("hiera_turbo_224", "lower", "hiera_tiny_224"),),
        sizes("hiera_turbo_224", "hiera_tiny_224"),
    ),
    "unified_norm_speed": turns(
        "vit_tiny_patch16_224, four pictures",
        (Rule("folded", "lower", "layer norm"), Rule("folded", "lower", "as trained")),
        folded("vit_tiny_patch16_224", "unified_norm"),
    ),
    "vision_rwkv": turns(
        "tiny, two layers, one picture", (Rule("RWKV, 1024", "lower", "ViT, 1024"),), large_pictures
    ),
}  # fmt: skip
