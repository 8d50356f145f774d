"""Systems' toys sharded over two processes, asked through each method of their roles; run as `python -m
tests.train.sharding RANK STORE NAME...`, once for each rank.

Prints a JSON object from rank 0: for each system and method how far its answers, and those after a step of training
through it, are from those of one process, beside their size; or what went wrong.
"""

from __future__ import annotations

import copy
import json
import sys
import traceback
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

import plait
from plait.tasks.bind import bind
from plait.tasks.classify import cross_entropy
from plait.tasks.rowwise import Answer
from plait.train.parallel import shard
from tests.contract.examples import example

WORDS = torch.arange(7, 57, 10).expand(3, -1)


MORE = {"zipformer_toy": {"labels": 9}}


def only(model: nn.Module, batch: dict) -> tuple[Tensor, Tensor | None]:
    (slot,) = model.takes
    return batch[slot], batch["keep"].get(slot)


def answering() -> nn.Module:
    """A task's model around a system, as it is trained."""
    system = plait.create_model("vit_toy", num_classes=0)
    model = Answer(bind(system, "backbone", {"image": {"kind": "image"}}), ["is"], torch.zeros(4), cross_entropy)
    nn.init.normal_(model.head.fused.weight, generator=torch.Generator().manual_seed(2))
    return model


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def painted(m: nn.Module, batch: dict) -> Tensor:
    return m.denoise(batch["noisy"], batch["time"], m.condition(batch))


ASK: dict[str, Callable] = {
    "tokens": lambda m, b: m.tokens(*only(m, b)),
    "pool": lambda m, b: m.pool(m.tokens(*only(m, b))),
    "features": lambda m, b: m.features(only(m, b)[0]),
    "embed": lambda m, b: m.embed(b),
    "fuse": lambda m, b: m.fuse(b),
    "transcribe": lambda m, b: m.transcribe(*only(m, b)),
    "detect": lambda m, b: m.detect(only(m, b)[0]),
    "prefill": lambda m, b: m.prefill(b),
    "step": lambda m, b: m.step(WORDS, m.prefill(b))[0],
    "encode": lambda m, b: m.encode(b["image"]),
    "decode": lambda m, b: m.decode(drawn(2, m.channels, 4, 4)),
    "condition": lambda m, b: m.condition(b),
    "denoise": painted,
    "act": lambda m, b: m.act(b),
    "answer": lambda m, b: m.answer(b),
    "guess": lambda m, b: m.guess(b, {s: drawn(len(b[s]), n).sigmoid() for s, n in m.places(b).items()}),
}


def numbers(answer: object) -> Tensor:
    """All that is answered, as one long vector."""
    return torch.cat([t.flatten() for t in tree_leaves(answer) if isinstance(t, Tensor) and t.is_floating_point()])


def compared(name: str, method: str, mesh) -> dict:
    single = (answering() if method == "answer" else plait.create_model(name, **MORE.get(name, {}))).eval()
    want = torch.zeros(0)
    sharded, ask = copy.deepcopy(single), ASK[method]
    batch = example(single.bound.system if method == "answer" else single, seed=1)
    shard(sharded, mesh)
    whole = all(isinstance(p, DTensor) for p in sharded.parameters())
    apart = []
    for _ in range(2):
        for model in (single, sharded):
            model.zero_grad()
            got = numbers(ask(model, batch))
            weights = torch.linspace(-1, 1, len(got))
            if got.requires_grad:
                (got * weights).sum().backward()
                torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-4).step()
            want = got.detach() if model is single else want
        apart.append(float((got.detach() - want).abs().max()))
    with torch.no_grad():  # and without gradients, then again with them
        got, want = numbers(ask(sharded, batch)), numbers(ask(single, batch))
        apart.append(float((got - want).abs().max()))
    weights = {k: v.full_tensor() for k, v in sharded.state_dict().items() if isinstance(v, DTensor)}
    moved = max(float((v - single.state_dict()[k]).abs().max()) for k, v in weights.items())
    return {"apart": max(apart), "size": float(want.abs().max()), "weights": moved, "sharded": whole}


def main(rank: int, store: str, *cases: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh, rows = init_device_mesh("cpu", (2,)), {}
    for case in cases:
        try:
            rows[case] = compared(*case.split("."), mesh)
        except Exception:
            rows[case] = {"error": traceback.format_exc()[-1500:]}
    if rank == 0:
        print(json.dumps(rows))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
