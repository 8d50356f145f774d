"""Pictures, texts and numbers in one table, each cell missing now and then: what does each add? On the command line:

plait fit shop.parquet --target price --kind photo=image
"""

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import plait

out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples")
draw = np.random.default_rng(0)
COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 200)}
SIZES = {"small": 1.0, "large": 2.0}


def photo(colour: str) -> bytes:
    pixels = np.clip(np.array(COLOURS[colour]) + draw.integers(-30, 30, (16, 16, 3)), 0, 255)
    Image.fromarray(pixels.astype(np.uint8)).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


rows: dict[str, list] = {"photo": [], "title": [], "weight": [], "price": []}
for _ in range(240):
    colour, size, weight = draw.choice(list(COLOURS)), draw.choice(list(SIZES)), draw.uniform(0, 1)
    rows["photo"].append(photo(colour) if draw.random() < 0.9 else None)
    rows["title"].append(f"a {size} jar" if draw.random() < 0.9 else None)
    rows["weight"].append(float(weight))
    rows["price"].append(float(10 * list(COLOURS).index(colour) + 5 * SIZES[size] + weight))

run = plait.fit(
    rows,
    target="price",
    kinds={"title": "text"},
    system="auto_toy",
    image_size=16,
    epochs=20,
    lr=3e-3,
    folds=1,  # judged by a tenth of the rows; by default such a table is judged by all, in five folds
    out=out / "shop",
)
print(run.assessments["test"].scores[0])
print("alone:", {slot: score.value for slot, score in run.assessments["test"].alone.items()})
