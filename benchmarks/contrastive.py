"""Contrastive training: a step beside open_clip's at equal weights, and what cached gradients cost.

    python benchmarks/contrastive.py speed [--depth 12] [--width 768] [--batch 8] [--precision fp32] [--rounds 5]
    python benchmarks/contrastive.py cached [--size nano] [--batch 4096] [--micro 256] [--rounds 3]
    python benchmarks/contrastive.py exact [--size toy] [--batch 4096] [--micro 256]

speed: ViT-B-32, whole or with fewer or narrower layers; forward, loss, backward and AdamW, taking turns in one process
on one thread, CPU time, the median of each; theirs / ours, so above 1 plait is faster. Texts are of 77 tokens each
(`whole`), or as long as captions are (`captions`, 14 tokens on average): open_clip reads 77 of each, plait up to the
longest, as `plait fit` gives them.
cached: seconds a row of a step of `batch` rows, `micro` at a time, beside steps of `micro` rows, in turns; and how much
memory each took beyond its inputs and weights, in processes of their own.
exact: gradients of `batch` rows by pieces, beside those of the whole batch: how far apart, relative to their norm.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

import plait  # noqa: E402
from plait.parts.objectives.cached import cached  # noqa: E402
from plait.parts.objectives.contrastive import contrastive  # noqa: E402
from plait.train import optim  # noqa: E402
from tests.peers import declare_torchvision  # noqa: E402

END = 49407


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else ():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return "unknown"


def texts(rows: int, length: int, vocab: int, whole: bool) -> tuple[Tensor, Tensor]:
    """Ids (B, length) with the end token last, and keep."""
    g = torch.Generator().manual_seed(0)
    n = torch.full((rows,), length) if whole else (torch.randn(rows, generator=g) * 5 + 14).round().long()
    n = n.clamp(4, length)
    keep = torch.arange(length) < n[:, None]
    ids = torch.randint(3, vocab - 2, (rows, length), generator=g) * keep
    ids[torch.arange(rows), n - 1] = vocab - 1
    return ids, keep


def turns(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each, one after another, the order changing; the first turn is not counted."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for n in range(rounds + 1):
        for name in ways if n % 2 else reversed(ways):
            begun = time.process_time()
            ways[name]()
            if n:
                spent[name].append(time.process_time() - begun)
    return spent


def speed(o: argparse.Namespace) -> None:
    declare_torchvision()
    import open_clip
    from open_clip.loss import ClipLoss

    made = open_clip.get_model_config("ViT-B-32")
    text_width = 64 * round(o.width * 2 / 3 / 64)
    image = made["vision_cfg"] | dict(layers=o.depth, width=o.width)
    text = made["text_cfg"] | dict(layers=o.depth, width=text_width, heads=text_width // 64)
    theirs = open_clip.create_model("ViT-B-32", vision_cfg=image, text_cfg=text)
    shape = dict(width=o.width, heads=o.width // 64, text_width=text_width, text_heads=text_width // 64)
    ours = plait.create_model("clip_vit_b_32", depth=o.depth, text_depth=o.depth, **shape)
    plait.load_weights(ours, theirs.state_dict(), source="open_clip")
    trained, other = (optim.adamw(m.train(), 1e-5, 0.05) for m in (ours, theirs))
    x, loss = torch.randn(o.batch, 3, 224, 224), ClipLoss()
    casts = torch.autocast("cpu", torch.bfloat16, enabled=o.precision == "bf16")
    print(f"{processor()}; ViT-B-32, {o.depth} layers of {o.width}, batch {o.batch}, {o.precision}", flush=True)
    for kind in ("whole", "captions"):
        ids, keep = texts(o.batch, 77, 49408, kind == "whole")

        def our_step(ids: Tensor = ids, keep: Tensor = keep) -> float:
            with casts:
                v = ours.embed({"image": x, "text": ids, "keep": {"text": keep}})
                found = contrastive(v["image"], v["text"], ours.logit_scale)["contrastive"]
            return step(found, trained)

        def their_step(ids: Tensor = ids) -> float:
            with casts:
                found = loss(*theirs(x, ids)[:3])
            return step(found, other)

        first = our_step(), their_step()
        near = 1e-4 if o.precision == "fp32" else 0.05
        assert math.isclose(*first, rel_tol=near), f"losses differ: {first}"
        spent = turns({"ours": our_step, "theirs": their_step}, o.rounds)
        own, peer = (statistics.median(spent[name]) for name in ("ours", "theirs"))
        each = ", ".join(f"{b / a:.2f}" for a, b in zip(spent["ours"], spent["theirs"]))
        print(f"{kind:9} ours {own:.3f} s, open_clip {peer:.3f} s: {peer / own:.3f} ({each})", flush=True)


def step(loss: Tensor, optimizer: torch.optim.Optimizer) -> float:
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def batch(model: nn.Module, rows: int) -> dict:
    """Pictures and captions as the model reads them."""
    reader = model.towers["text"]
    ids, keep = texts(rows, min(32, reader.positions.length), reader.words.table.num_embeddings, False)
    side = model.blanks["image"][0]
    return {"image": torch.randn(rows, *side), "text": ids, "keep": {"text": keep}}


def loss_of(model: nn.Module, given: dict, micro: int | None) -> Tensor:
    v = cached(model.embed, given, micro, model)
    group = torch.arange(len(v["text"]))
    return contrastive(v["text"], v["image"], model.logit_scale, group[:, None] == group)["contrastive"]


def cost(o: argparse.Namespace) -> None:
    model = plait.create_model(f"clip_{o.size}").train()
    optimizer = optim.adamw(model, 1e-5, 0.05)
    large = batch(model, o.batch)
    small = {"image": large["image"][: o.micro], "text": large["text"][: o.micro]}
    small["keep"] = {"text": large["keep"]["text"][: o.micro]}
    several = 4  # plain steps a turn

    def plain() -> float:
        return sum(step(loss_of(model, small, None), optimizer) for _ in range(several))

    def pieces() -> float:
        return step(loss_of(model, large, o.micro), optimizer)

    print(f"{processor()}; clip_{o.size}, {o.batch} rows, {o.micro} at a time, beside {o.micro} rows", flush=True)
    spent = turns({"plain": plain, "pieces": pieces}, o.rounds)
    one, other = [s / (several * o.micro) for s in spent["plain"]], [s / o.batch for s in spent["pieces"]]
    ratios = ", ".join(f"{b / a:.2f}" for a, b in zip(one, other))
    ratio = statistics.median(other) / statistics.median(one)
    own, peer = (1e3 * statistics.median(spent) for spent in (other, one))
    print(f"ms a row: {own:.2f}, beside {peer:.2f}: {ratio:.3f} ({ratios})", flush=True)
    for rows, micro in ((o.micro, 0), (o.batch, o.micro)):
        told = [sys.executable, __file__, "memory", "--size", o.size, "--batch", str(rows), "--micro", str(micro)]
        print(subprocess.run(told, capture_output=True, text=True, check=True).stdout.strip(), flush=True)


def memory(o: argparse.Namespace) -> None:
    model = plait.create_model(f"clip_{o.size}").train()
    given = batch(model, o.batch)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loss_of(model, given, o.micro or None).backward()
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"batch {o.batch}, {o.micro or 'all'} at a time: {taken / 2**10:.0f} MiB beside inputs and weights")


def exact(o: argparse.Namespace) -> None:
    model = plait.create_model(f"clip_{o.size}").train()
    given, found = batch(model, o.batch), []
    for micro in (None, o.micro):
        loss_of(model, given, micro).backward()
        found.append([p.grad for p in model.parameters()])
        model.zero_grad(set_to_none=True)
    apart = sum((a - b).double().square().sum() for a, b in zip(*found))
    far = (apart / sum(a.double().square().sum() for a in found[0])).sqrt()
    print(f"clip_{o.size}, batch {o.batch}, {o.micro} at a time: gradients {far:.1e} apart, relative to their norm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    numbers = dict(
        speed=(speed, dict(depth=12, width=768, batch=8, rounds=5)),
        cached=(cost, dict(batch=4096, micro=256, rounds=3)),
        memory=(memory, dict(batch=4096, micro=256)),
        exact=(exact, dict(batch=4096, micro=256)),
    )
    for name, (call, given) in numbers.items():
        one = what.add_parser(name)
        one.set_defaults(call=call)
        for option, value in given.items():
            one.add_argument(f"--{option}", type=int, default=value)
        if name == "speed":
            one.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
        else:
            one.add_argument("--size", default="toy" if name == "exact" else "nano")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    options.call(options)


if __name__ == "__main__":
    main()
