"""Questions about pictures of a few coloured shapes: how many, which colour, which shape, where. Does an assistant
answer them, also for shapes in colours that it never saw them in?

    python benchmarks/answer_shapes.py [--rows 20000] [--epochs 18] [--system llava] [--tower vit_clip]

Every picture of the test rows has a thing of a combination that never occurs in training, and the question is about it:
a colour and a shape, or with --held places a colour and a shape at a place (each two of which occur). The
same is then asked without pictures. Says whether parts that are frozen came out as they went in. Writes only to --out.

--tower: first this system learns to name the colour and the shape at each place, in other pictures, where all
combinations occur, as a published tower has seen them all; the assistant, which has not, begins with what it has
become. For systems that leave their tower as it is, such as llava_nano_frozen.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

import plait
from plait.core.catalog import model_info
from plait.runs.assemble import BoundRecipe
from plait.runs.declared import read_config
from plait.runs.parts import read_parts

COLOURS = {
    "red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 230),
    "yellow": (235, 215, 40), "white": (245, 245, 245), "black": (15, 15, 15),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross")
PAIRS = {("red", "circle"), ("green", "square"), ("blue", "triangle"), ("yellow", "cross")}
SIDE, CELL = 32, 16
PLACES = {"top left": (0, 0), "top right": (1, 0), "bottom left": (0, 1), "bottom right": (1, 1)}
NUMBERS = ("none", "one", "two", "three", "four")


def never(held: str, place: str, colour: str, shape: str) -> bool:
    """Whether the combination is kept for the test: 4 pairs of 24 anywhere, or 6 of 24 at each place."""
    if held == "pairs":
        return (colour, shape) in PAIRS
    return (list(COLOURS).index(colour) + SHAPES.index(shape)) % len(PLACES) == list(PLACES).index(place)


def draw(things: dict[str, tuple[str, str]], rng: np.random.Generator) -> bytes:
    """things: {place: (colour, shape)} -> PNG (SIDE x SIDE) on a grey of its own, each a little off its place."""
    picture = Image.new("RGB", (SIDE, SIDE), (int(rng.integers(90, 130)),) * 3)
    pen = ImageDraw.Draw(picture)
    for place, (colour, shape) in things.items():
        size = int(rng.integers(9, 13))
        x, y = (CELL * c + int(rng.integers(1, CELL - size)) for c in PLACES[place])
        box, fill = (x, y, x + size, y + size), COLOURS[colour]
        if shape == "circle":
            pen.ellipse(box, fill)
        elif shape == "square":
            pen.rectangle(box, fill)
        elif shape == "cross":
            third = size // 3
            pen.rectangle((x + third, y, x + size - third, y + size), fill)
            pen.rectangle((x, y + third, x + size, y + size - third), fill)
        else:
            pen.polygon([(x, y + size), (x + size, y + size), (x + size / 2, y)], fill)
    pixels = np.asarray(picture, np.float32) + rng.normal(0, 6, (SIDE, SIDE, 3))
    out = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def rows(count: int, held_out: bool | None, seed: int, held: str = "pairs") -> pa.Table:
    """Columns picture, question, answer, there (a list of what is where). held_out: one thing of each picture, which is
    asked about, is one that `never` occurs otherwise; None: all combinations are alike."""
    rng = np.random.default_rng(seed)
    every = [(c, s) for c in COLOURS for s in SHAPES]
    usual = {p: [t for t in every if held_out is None or not never(held, p, *t)] for p in PLACES}
    kept = {p: [t for t in every if never(held, p, *t)] for p in PLACES}
    table: dict[str, list] = {"picture": [], "question": [], "answer": [], "there": []}
    for i in range(count):
        places = list(rng.permutation(list(PLACES))[: rng.integers(1, 5)])
        things = {str(p): usual[p][rng.integers(len(usual[p]))] for p in places}
        place = str(places[0])
        if held_out:
            things[place] = kept[place][rng.integers(len(kept[place]))]
        colour, shape = things[place]
        match i % 4:
            case 0:
                question = f"what colour is the shape at the {place} ?"
                answer = colour
            case 1:
                question = f"what shape is at the {place} ?"
                answer = shape
            case 2:
                asked = colour if rng.random() < 0.8 else str(rng.choice(list(COLOURS)))
                question = f"how many {asked} shapes are there ?"
                answer = NUMBERS[sum(c == asked for c, _ in things.values())]
            case _:
                alone = [p for p, thing in things.items() if thing == (colour, shape)]
                if len(alone) > 1:  # where is it? must have one answer
                    for other in alone[1:]:
                        del things[other]
                question = f"where is the {colour} {shape} ?"
                answer = place
        table["picture"].append(draw(things, rng))
        table["question"].append(question)
        table["answer"].append(answer)
        table["there"].append([f"{p} {what}" for p, thing in things.items() for what in thing])
    return pa.table(table)


def floor(train: pa.Table, test: pa.Table) -> float:
    """How many are right who know the question and not the picture: the commonest answer to questions that begin so."""
    known: dict[str, list[str]] = {}
    for question, answer in zip(train["question"].to_pylist(), train["answer"].to_pylist()):
        known.setdefault(question, []).append(answer)
    best = {q: max(set(a), key=a.count) for q, a in known.items()}
    pairs = zip(test["question"].to_pylist(), test["answer"].to_pylist())
    return float(np.mean([best.get(question) == answer for question, answer in pairs]))


def by_kind(run: plait.Run, test: pa.Table) -> dict[str, float]:
    """{"what colour": the share that is right, ...}."""
    right: dict[str, list[bool]] = {}
    said = run.predict(test.drop_columns("answer"))["answer"].to_pylist()
    for question, answer, wanted in zip(test["question"].to_pylist(), said, test["answer"].to_pylist()):
        right.setdefault(" ".join(question.split()[:2]), []).append(answer == wanted)
    return {kind: round(float(np.mean(found)), 3) for kind, found in right.items()}


def digest(module) -> str:
    whole = hashlib.sha256()
    for key, tensor in sorted(module.state_dict().items()):
        whole.update(key.encode() + tensor.numpy().tobytes())
    return whole.hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--tests", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=18)
    parser.add_argument("--system", default="llava")
    parser.add_argument("--tower", help="A picture system, or the folder of a run of one.")
    parser.add_argument("--held", choices=("pairs", "places"), default="pairs", help="What is kept for the test.")
    parser.add_argument("--tower-epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/answer_shapes"))
    options = parser.parse_args()
    train = rows(options.rows, False, options.seed, options.held)
    test = rows(options.tests, True, options.seed + 1, options.held)
    shutil.rmtree(options.out, ignore_errors=True)
    how: dict = dict(image_size=SIDE, fractions=(0.92, 0.08, 0.0), seed=options.seed)
    parts = {}
    if options.tower and Path(options.tower).is_dir():
        parts["vision"] = options.tower
    elif options.tower:
        told = dict(
            target="there",
            inputs=["picture"],
            system=options.tower,
            epochs=options.tower_epochs,
            kinds={"there": "labels"},
        )
        tower = plait.fit(rows(options.rows, None, options.seed + 2), out=options.out / "tower", **told, **how)
        print(f"the tower names what is where: {tower.evaluate(test).scores[0]}")
        parts["vision"] = str(tower.folder)
    told = dict(target="answer", task="answer", inputs=["picture", "question"], system=options.system, parts=parts)
    kinds = {"question": "text", "answer": "text"}
    run = plait.fit(train, out=options.out / "assistant", epochs=options.epochs, kinds=kinds, **told, **how)
    made = BoundRecipe(**read_config(run.folder)["recipe"])
    sources = read_parts(model_info(options.system), parts).sources
    system, begun = run.model.bound.system, made.build(seed=options.seed, parts=sources)
    found = run.evaluate(test)
    print(f"questions about unseen combinations: {found.scores[0]}")
    print(f"by what is asked:                    {by_kind(run, test)}")
    print(f"of the same without the pictures:    {found.alone['question']}")
    print(f"by what is asked:                    {by_kind(run, test.drop_columns('picture'))}")
    print(f"the commonest answer to each:        {floor(train, test):.3f}")
    for name, part in system.named_children():
        frozen = not any(p.requires_grad for p in part.parameters())
        same = digest(part) == digest(getattr(begun, name))
        print(f"{name:8} {'frozen' if frozen else 'trained'}, {'as it was' if same else 'changed'}")


if __name__ == "__main__":
    main()
