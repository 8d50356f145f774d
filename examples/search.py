"""Pictures by words: two towers learn which text belongs to which picture, then a folder is searched. On the command
line:

    plait fit shapes.parquet --task retrieve --inputs photo,title --system clip
    plait embed runs/shapes photos/ -o vectors.parquet
    plait search runs/shapes photos/ --text "a red circle" --show hits.png
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import plait

out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples")
draw = np.random.default_rng(0)
COLOURS, SHAPES = ("red", "green", "blue", "orange"), ("circle", "square", "cross")

photos = out / "photos"
photos.mkdir(parents=True, exist_ok=True)
rows: dict[str, list] = {"photo": [], "title": []}
for i in range(240):
    colour, shape = draw.choice(COLOURS), draw.choice(SHAPES)
    picture, (x, y) = Image.new("RGB", (32, 32), "white"), draw.integers(2, 12, 2).tolist()
    pen, box = ImageDraw.Draw(picture), (x, y, x + 16, y + 16)
    match shape:
        case "circle":
            pen.ellipse(box, fill=colour)
        case "square":
            pen.rectangle(box, fill=colour)
        case "cross":
            pen.line((x, y, x + 16, y + 16), fill=colour, width=4)
            pen.line((x, y + 16, x + 16, y), fill=colour, width=4)
    picture.save(photos / f"{i}.png")
    rows["photo"].append((photos / f"{i}.png").read_bytes())
    rows["title"].append(f"a {colour} {shape}")

run = plait.fit(
    rows, task="retrieve", inputs=["photo", "title"], kinds={"title": "text"}, system="clip_toy", image_size=32,
    epochs=20, lr=3e-3, out=out / "shapes",
)  # fmt: skip
print(run.assessments["test"].scores[0])
for hit in run.search(rows, text="a red circle", k=3):
    print(f"{hit.score:.3f} row {hit.row}: {rows['title'][hit.row]}")
