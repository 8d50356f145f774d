"""Characters from their class: what `plait fit --task generate` makes of glyphs, and how far that is from real ones.

    python benchmarks/generate_glyphs.py [--epochs 60] [--minutes 30] [--rows 10] [--out FOLDER]

Draws 36 characters in the twelve DejaVu typefaces of matplotlib, turned, scaled and moved a little (32 x 32), fits
`dit` on class -> picture, and prints, for test rows that were never trained on: the distance of the generated pictures,
of real ones blurred and of the real halves; how many a classifier names right that this script trains on real pictures
(another one than the run's own); both for other guidances and numbers of steps. Times are CPU seconds of one core.
"""

from __future__ import annotations

import argparse
import io
import string
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import nn

import plait
from plait.data.samples import SEEN, UNSEEN, _fonts
from plait.evaluate.generated import distance
from plait.tasks.generate import blurred

CHARACTERS = string.ascii_uppercase + string.digits
SIDE = 32


def glyph(character: str, face: ImageFont.FreeTypeFont, rng: np.random.Generator) -> bytes:
    """White on black, turned by up to 8 degrees, scaled by up to a tenth, moved by up to two pixels."""
    field = Image.new("L", (4 * SIDE, 4 * SIDE))
    at, size = (4 * (SIDE / 2 + rng.uniform(-2, 2, 2))).tolist(), int(96 * rng.uniform(0.9, 1.1))
    ImageDraw.Draw(field).text(at, character, font=face.font_variant(size=size), fill=255, anchor="mm")
    field = field.rotate(rng.uniform(-8, 8), Image.Resampling.BICUBIC).resize((SIDE, SIDE), Image.Resampling.BOX)
    out = io.BytesIO()
    field.save(out, "PNG")
    return out.getvalue()


def table(rows: int, seed: int = 0) -> pa.Table:
    """`rows` of each character and typeface; a twentieth is "val", a twentieth "test"."""
    rng, fonts = np.random.default_rng(seed), _fonts()
    columns: dict[str, list] = {"character": [], "picture": [], "split": []}
    for name in (*SEEN, *UNSEEN):
        face = ImageFont.truetype(str(fonts[name]), 96)
        for character in CHARACTERS:
            for _ in range(rows):
                columns["character"].append(character)
                columns["picture"].append(glyph(character, face, rng))
                columns["split"].append(str(rng.choice(["train", "val", "test"], p=[0.9, 0.05, 0.05])))
    return pa.table(columns)


def pixels(cells: list[bytes]) -> torch.Tensor:
    """(n, 3, H, W) in [0, 1]."""
    found = [torch.from_numpy(np.array(Image.open(io.BytesIO(c)).convert("RGB"))) for c in cells]
    return torch.stack(found).permute(0, 3, 1, 2) / 255


def classes(column: list[str]) -> torch.Tensor:
    return torch.tensor([CHARACTERS.index(c) for c in column])


def judge(x: torch.Tensor, y: torch.Tensor, epochs: int = 8) -> nn.Module:
    """A classifier of real pictures, which no generator has seen."""
    torch.manual_seed(1)
    steps = [nn.Conv2d(1, 24, 5, 2, 2), nn.ReLU(), nn.Conv2d(24, 48, 3, 2, 1), nn.ReLU(), nn.Conv2d(48, 96, 3, 2, 1)]
    last = [nn.ReLU(), nn.Flatten(), nn.Linear(96 * 16, 128), nn.ReLU(), nn.Linear(128, len(CHARACTERS))]
    model = nn.Sequential(*steps, *last)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    count = epochs * len(x) // 64
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, count + 1)
    for _ in range(count):
        some = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(x[some, :1]), y[some]).backward()
        optimizer.step()
        rate.step()
    return model.eval()


@torch.no_grad()
def named(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    return float((model(x[:, :1]).argmax(1) == y).float().mean())


def sheet(x: torch.Tensor, columns: int = 36) -> Image.Image:
    """Pictures (n, 3, H, W), `columns` a line."""
    x = x[: len(x) // columns * columns].unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    return Image.fromarray((255 * x).round().byte().numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/generate_glyphs")
    parser.add_argument("--rows", type=int, default=10, help="pictures of each character in each typeface")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--minutes", type=float, help="of training by the clock, where the machine is busy")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--most", type=int, default=360, help="test rows of which other guidances and steps are tried")
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = table(options.rows)
    split, x, y = np.array(made["split"]), pixels(made["picture"].to_pylist()), classes(made["character"].to_pylist())
    train, test = np.flatnonzero(split == "train"), np.flatnonzero(split == "test")
    expert = judge(x[train], y[train])
    print(f"{len(made)} glyphs; a classifier names {named(expert, x[test], y[test]):.3f} of real test pictures right")
    begun = time.process_time()
    how = dict(task="generate", target="picture", inputs=["character"], split="split", epochs=options.epochs)
    how |= dict(batch_size=options.batch)
    if Path(options.out, "config.json").exists():  # one that was interrupted goes on
        run = plait.fit(made, out=options.out, resume=True, minutes=options.minutes)
    else:
        run = plait.fit(made, out=options.out, minutes=options.minutes, **how)
    print(f"fit: {time.process_time() - begun:.0f} CPU seconds, evaluation of {len(test)} test rows among them")
    for score in run.assessments["test"].scores:
        print(f"  {score}")
    print("without a model:", *run.assessments["test"].baseline, sep="\n  ")
    some = test[: options.most]
    with torch.no_grad():
        real, soft = run.model.tower(x[some]).numpy(), run.model.tower(blurred(x[some])).numpy()
    print(f"{len(some)} test rows: blurred {distance('distance', real, soft)}, ", end="")
    print(f"of which the classifier names {named(expert, blurred(x[some]), y[some]):.3f} right")
    for guidance, steps in ((0, 20), (1, 20), (2, 20), (4, 20), (2, 10), (2, 5)):
        begun = time.process_time()
        cells = run.predict(made.select(["character"]).take(some), guidance=guidance, steps=steps)["picture"]
        seconds, drawn = time.process_time() - begun, pixels(cells.to_pylist())
        with torch.no_grad():
            apart = distance("distance", real, run.model.tower(drawn).numpy())
        right = named(expert, drawn, y[some])
        print(f"guidance {guidance}, {steps:2} steps: {right:.3f} named right, {apart}, {seconds:.0f} CPU seconds")
    asked = pa.table({"character": [c for _ in range(6) for c in CHARACTERS]})
    sheet(pixels(run.predict(asked)["picture"].to_pylist())).save(f"{options.out}/sheet.png")


if __name__ == "__main__":
    main()
