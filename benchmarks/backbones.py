"""plait's backbones against the peers they are checked by: same weights, same input, same precision, same process,
taking turns.

    python benchmarks/backbones.py [PATTERN] [--rounds 7] [--batch 1,8] [--precision fp32,bf16] [--out runs/backbones]

For each system the smallest published size with a peer in timm or transformers (`--all-sizes`: every one). The figure
is peer time / plait
time, so above 1 is faster: the median over the rounds of a pair of neighbours, in CPU time of one thread, which other
processes disturb least (`--threads 2` for wall time with more). Prints a table and the geometric means, and writes
ratios.json and ratios.png to --out.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import plait
from plait.core.catalog import systems

sys.path.insert(0, str(Path(__file__).parents[1]))  # how a peer is made is what the tests of parity know
from tests.parity import modules  # noqa: E402
from tests.peers import declare_torchvision  # noqa: E402


def pair(name: str, timm_name: str | None) -> tuple[nn.Module, nn.Module, tuple[int, int]]:
    """Ours and theirs with the same weights, and the picture size (H, W). Both are called with a batch of pictures."""
    own = next((m for m in modules() if name in m.CASES), None)
    if hasattr(own, "pair"):  # a peer whose making takes more than a name
        return own.pair(name)
    import timm

    theirs = timm.create_model(timm_name)
    if plait.model_info(name).parameters != sum(p.numel() for p in theirs.parameters()):
        # ours has the head of the published paper, timm's that of a larger set
        theirs = timm.create_model(timm_name, num_classes=1000)
    ours = plait.load_weights(plait.create_model(name), theirs.state_dict(), source="timm")
    return ours, theirs, tuple(theirs.pretrained_cfg["input_size"][1:])


def forward(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        _tensor(model(x))


def step(model: nn.Module, x: Tensor) -> None:
    """Forward and backward; gradients are dropped as an optimizer does."""
    for p in model.parameters():
        p.grad = None
    _tensor(model(x)).float().square().mean().backward()


def _tensor(out) -> Tensor:
    return out if isinstance(out, Tensor) else out.logits if hasattr(out, "logits") else out[0]


def ratio(
    ours: nn.Module, theirs: nn.Module, x: Tensor, run: Callable, rounds: int, clock: Callable[[], float]
) -> tuple[float, float]:
    """(their time / our time, our seconds): medians over `rounds` turns, who begins alternating."""
    for model in (ours, theirs):
        run(model, x)
    ratios, mine = [], []
    for i in range(rounds):
        spent = {}
        for model in (ours, theirs) if i % 2 else (theirs, ours):
            begun = clock()
            run(model, x)
            spent[model] = clock() - begun
        ratios.append(spent[theirs] / spent[ours])
        mine.append(spent[ours])
    return statistics.median(ratios), statistics.median(mine)


def chosen(pattern: str, every: bool) -> list[tuple[str, str | None]]:
    """(our name, timm's) of the sizes to measure: those whose logits a peer gives too."""
    found = []
    for system in systems().values():
        if "backbone" not in system.roles or system.takes != ("image",):
            continue
        names = [
            f"{system.name}_{s}"
            for s, row in system.weights.items()
            if {"timm", "transformers"} & set(row.get("references", {}))
        ]
        names = [n for n in names if fnmatch.fnmatch(n, pattern) or fnmatch.fnmatch(system.name, pattern)]
        if not every:
            names = sorted(names, key=lambda n: plait.model_info(n).parameters)[:1]
        found += [(n, plait.model_info(n).references.get("timm")) for n in names]
    return found


def record(system: str, rows: list[dict]) -> None:
    """Replace what is known of these sizes."""
    path = Path(__file__).parents[1] / "docs" / "measured" / "speed" / f"{system}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    names = {r["name"] for r in rows}
    known = [r for r in (json.loads(path.read_text()) if path.exists() else []) if r["name"] not in names]
    rounded = [r | dict(ratio=round(r["ratio"], 3), seconds=round(r["seconds"], 5)) for r in rows]
    path.write_text("[\n" + ",\n".join(json.dumps(r) for r in known + rounded) + "\n]\n")


def plot(rows: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    kinds = sorted({(r["run"], r["batch"], r["precision"]) for r in rows})
    names = list(dict.fromkeys(r["name"] for r in rows))
    figure, axes = plt.subplots(figsize=(7, 1.5 + 0.28 * len(names)), layout="constrained")
    for k, (run, batch, precision) in enumerate(kinds):
        points = [
            (r["ratio"], names.index(r["name"]))
            for r in rows
            if (r["run"], r["batch"], r["precision"]) == (run, batch, precision)
        ]
        axes.scatter(*zip(*points), s=22, marker="osD^vP<>"[k % 8], label=f"{run}, batch {batch}, {precision}")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(
        yticks=range(len(names)),
        yticklabels=names,
        xscale="log",
        xlabel="peer time / plait time (above 1: plait is faster)",
    )
    axes.grid(axis="x", alpha=0.3, which="both")
    axes.invert_yaxis()
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", nargs="?", default="*")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--all-sizes", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/backbones"))
    parser.add_argument(
        "--record",
        action="store_true",
        help="also write docs/measured/speed/SYSTEM.json, for the pages of docs/systems",
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    declare_torchvision()
    rows = []
    print(f"{'model':36} {'run':8} {'batch':>5} {'precision':>9} {'plait ms':>9} {'ratio':>6}", flush=True)
    for name, peer in chosen(options.pattern, options.all_sizes):
        torch.manual_seed(0)
        ours, theirs, size = pair(name, peer)
        for precision in options.precision.split(","):
            for batch in map(int, options.batch.split(",")):
                x = torch.randn(batch, 3, *size)
                for run, train in ((forward, False), (step, True)):
                    for model in (ours, theirs):
                        model.train(train)
                    try:
                        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                            found, seconds = ratio(ours, theirs, x, run, options.rounds, clock)
                    except ValueError as error:
                        if "more than 1 value per channel" not in str(error):
                            raise
                        print(
                            f"{name:36} {run.__name__:8} {batch:5} {precision:>9}  a batch norm sees one value: "
                            "cannot train",
                            flush=True,
                        )
                        continue
                    rows.append(
                        dict(
                            name=name, run=run.__name__, batch=batch, precision=precision, ratio=found, seconds=seconds
                        )
                    )
                    print(
                        f"{name:36} {run.__name__:8} {batch:5} {precision:>9} {1e3 * seconds:9.1f} {found:6.2f}",
                        flush=True,
                    )
        if options.record:
            record(plait.model_info(name).system.name, [r for r in rows if r["name"] == name])
        del ours, theirs
        gc.collect()
    for run in ("forward", "step"):
        for precision in options.precision.split(","):
            these = [r for r in rows if r["run"] == run and r["precision"] == precision]
            if these:
                worst = min(these, key=lambda r: r["ratio"])
                mean = statistics.geometric_mean(r["ratio"] for r in these)
                print(
                    f"{run}, {precision}: geometric mean {mean:.3f}, lowest {worst['ratio']:.2f} ({worst['name']}, "
                    f"batch {worst['batch']})"
                )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "ratios.json").write_text(json.dumps(rows, indent=1))
    plot(rows, options.out / "ratios.png")


if __name__ == "__main__":
    main()
