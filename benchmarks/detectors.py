"""Detectors: how long a forward pass and a step take beside transformers', at equal weights; and NLVR's pictures as a
table of boxes, to try one on.

    python benchmarks/detectors.py speed [NAME...]
    python benchmarks/detectors.py table IN.parquet OUT.parquet
    plait fit train.parquet --val val.parquet --target boxes --task detect --inputs image

Speed: CPU time on one thread, taking turns, the least of each; the geometric mean of theirs by ours is told last.
Table: of the columns `image`, `permutation` and `boxes` of NLVR: three regions at 0, 150 and 300 pixels, which stand in
the picture in the order that the permutation's number says.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import plait  # noqa: E402
from tests.parity import deformable_detr, detr  # noqa: E402
from tests.peers import declare_torchvision  # noqa: E402

NAMES = ("detr_resnet_50", "deformable_detr_single_scale", "deformable_detr_resnet_50")
ROUNDS, SIDE = 3, (256, 320)
ORDERS = list(itertools.permutations(range(3)))


def pair(name: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Ours and theirs, with the same weights."""
    declare_torchvision()
    if name.startswith("deformable"):
        theirs = deformable_detr.reference(name)
    else:
        from transformers import DetrConfig, DetrForObjectDetection

        theirs = DetrForObjectDetection(DetrConfig(num_labels=91))
    ours = plait.load_weights(plait.create_model(name), detr.published(theirs), source="transformers")
    for key, p in ours.backbone.named_parameters():  # theirs does not train these
        p.requires_grad_(not key.startswith(("stem.", "stages.0.")))
    return ours, theirs


def took(model, x: torch.Tensor, train: bool) -> float:
    model.train(train)
    begun = time.process_time()
    with torch.set_grad_enabled(train):
        out = model(x)
        if train:
            boxes = out["boxes"][:, -1] if isinstance(out, dict) and "boxes" in out else out.pred_boxes
            logits = out["logits"][:, -1] if isinstance(out, dict) and "boxes" in out else out.logits
            (boxes.square().mean() + logits.square().mean()).backward()
    found = time.process_time() - begun
    model.zero_grad(set_to_none=True)
    return found


def speed(names: list[str]) -> None:
    torch.set_num_threads(1)
    ratios: list[float] = []
    for name in names:
        models, x = pair(name), torch.randn(2, 3, *SIDE)
        for train in (False, True):
            best = [math.inf, math.inf]
            for n in range(ROUNDS + 1):
                for i in (0, 1) if n % 2 else (1, 0):
                    seconds = took(models[i], x, train)
                    best[i] = min(best[i], seconds) if n else math.inf  # the first is not counted
            ratios.append(best[1] / best[0])
            what = "step" if train else "forward"
            print(f"{name:32} {what:8} ours {best[0]:.3f} s, theirs {best[1]:.3f} s: {ratios[-1]:.3f}", flush=True)
    print(f"geometric mean of {len(ratios)}: {math.exp(sum(map(math.log, ratios)) / len(ratios)):.3f}")


def things(cell: str, order: int) -> str:
    """NLVR's regions as they stand in the picture, as boxes with the shape as their label."""
    regions, found = json.loads(cell), []
    for place, region in enumerate(ORDERS[order]):
        for t in regions[region]:
            x, y, size = t["x_loc"] + 150 * place, t["y_loc"], t["size"]
            found.append({"label": t["type"], "box": [x, y, x + size, y + size]})
    return json.dumps(found)


def table(source: str, out: str) -> None:
    given = pq.read_table(source)
    boxes = list(map(things, given["boxes"].to_pylist(), given["permutation"].to_pylist()))
    pq.write_table(pa.table({"image": given["image"], "boxes": boxes}), out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    timed = what.add_parser("speed", help="Forward passes and steps beside transformers'.")
    timed.add_argument("names", nargs="*", metavar="NAME", default=list(NAMES))
    made = what.add_parser("table", help="NLVR's pictures as a table of boxes.")
    made.add_argument("source", metavar="IN.parquet")
    made.add_argument("out", metavar="OUT.parquet")
    options = parser.parse_args()
    if options.what == "table":
        table(options.source, options.out)
    else:
        speed(options.names)


if __name__ == "__main__":
    main()
