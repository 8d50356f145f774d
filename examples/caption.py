"""A text about each picture: a decoder that reads the picture and writes word by word. On the command line:

plait fit squares.parquet --task caption --target said
plait predict runs/squares new.parquet -o texts.csv
"""

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import plait

out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples")
draw = np.random.default_rng(0)
COLOURS = {"red": (220, 30, 30), "green": (30, 190, 50), "blue": (30, 50, 220)}
rows: dict[str, list] = {"photo": [], "said": []}
for _ in range(200):
    pixels, side, colour = (
        np.full((32, 32, 3), 255, np.uint8),
        draw.choice(["left", "right"]),
        draw.choice(list(COLOURS)),
    )
    pixels[8:24, 2 : 14 if side == "left" else None][:, :12] = COLOURS[colour]
    if side == "right":
        pixels = pixels[:, ::-1].copy()
    Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
    rows["photo"].append(file.getvalue())
    rows["said"].append(f"a {colour} square on the {side}")

run = plait.fit(
    rows, task="caption", target="said", system="git_toy", image_size=32, epochs=12, lr=3e-3, augment=0.0,
    out=out / "squares",
)  # fmt: skip
print(run.assessments["test"].scores[0])
print(run.predict({"photo": rows["photo"][:3]}).to_pandas())
