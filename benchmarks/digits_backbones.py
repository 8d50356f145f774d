"""Every picture backbone through `plait fit` on scikit-learn's handwritten digits, enlarged: does it learn, and how
long does it take?

    python benchmarks/digits_backbones.py [PATTERN] [--epochs 20] [--size 32]

Each system's default size, from nothing, with fit's defaults but for the epochs, on 1,257 of the 1,797 pictures (180
more to watch); all are tested on the same rows. The rate is fit's too, as it was when a row was measured. Figures go to
docs/measured/digits.json as they come (what is there is not run again without --again) and the table to docs/digits.md.
"""

from __future__ import annotations

import argparse
import fnmatch
import io
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

import plait
from plait.core.catalog import systems
from plait.runs.console import Console

DOCS = Path(__file__).parents[1] / "docs"
FIGURES = DOCS / "measured" / "digits.json"
WANTED = 0.95


def table(size: int) -> dict[str, list]:
    """Pictures of `size` x `size`, what they show, and the split: every fifth row is for testing, every tenth to
    watch."""
    found = load_digits()
    rows: dict = {"photo": [], "digit": [], "split": []}
    for i, (pixels, digit) in enumerate(zip(found.images, found.target)):
        buffer = io.BytesIO()
        Image.fromarray((pixels * 15.9).astype(np.uint8)).resize((size, size), Image.Resampling.BILINEAR).save(
            buffer, "PNG"
        )
        rows["photo"].append(buffer.getvalue())
        rows["digit"].append(str(digit))
        rows["split"].append("test" if i % 5 == 0 else "val" if i % 10 == 1 else "train")
    return rows


def measure(system: str, rows: dict, epochs: int, size: int) -> dict:
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        run = plait.fit(
            rows,
            out=Path(folder) / "run",
            target="digit",
            task="classify",
            split="split",
            system=system,
            epochs=epochs,
            image_size=size,
            console=Console(quiet=True),
        )
        score = run.assessments["test"].scores[0]
        plan = json.loads((Path(folder) / "run" / "config.json").read_text())["plan"]
    info = plait.model_info(system)
    return dict(
        model=info.name,
        parameters=info.parameters,
        accuracy=round(float(score.value), 4),
        low=round(float(score.low), 4),
        high=round(float(score.high), 4),
        epochs=plan["epochs"],
        lr=plan["lr"],
        size=size,
        cpu_seconds=round(time.process_time() - begun),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", nargs="?", default="*")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--again", action="store_true")
    options = parser.parse_args()
    known = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    rows = table(options.size)
    for system in systems().values():
        if (
            system.takes != ("image",)
            or "backbone" not in system.roles
            or not fnmatch.fnmatch(system.name, options.pattern)
        ):
            continue
        if system.name in known and not options.again:
            continue
        figures = measure(system.name, rows, options.epochs, options.size)
        print(
            f"{figures['model']:28} accuracy {figures['accuracy']:.3f} [{figures['low']:.3f}, {figures['high']:.3f}]",
            flush=True,
        )
        known = (json.loads(FIGURES.read_text()) if FIGURES.exists() else {}) | {system.name: figures}
        FIGURES.parent.mkdir(parents=True, exist_ok=True)
        FIGURES.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")
    lines = ["# Backbones on handwritten digits", "", __doc__.strip().split("\n\n")[2].replace("\n", " "), ""]
    lines += [
        "| model | parameters | accuracy [95% interval] | CPU seconds | epochs | rate |",
        "|---|--:|---|--:|--:|--:|",
    ]
    for f in sorted(known.values(), key=lambda f: -f["accuracy"]):
        span = f"{f['accuracy']:.3f} [{f['low']:.3f}, {f['high']:.3f}]"
        lines.append(
            f"| `{f['model']}` | {f['parameters'] / 1e6:.2f} M | {span} | {f['cpu_seconds']} | {f['epochs']} | "
            f"{f['lr']:g} |"
        )
    (DOCS / "digits.md").write_text("\n".join(lines) + "\n")
    missed = [f["model"] for f in known.values() if f["accuracy"] < WANTED]
    print(
        f"{len(known)} systems, {len(known) - len(missed)} at {WANTED} or more"
        + (f"; below: {', '.join(missed)}" if missed else "")
    )


if __name__ == "__main__":
    main()
