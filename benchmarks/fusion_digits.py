"""Written and spoken digits, both spoilt: does a model of both beat the better one, and does it stay good when one is
missing?

    python benchmarks/fusion_digits.py --spoken spoken_digits

Pictures are scikit-learn's 8 x 8 digits, blurred and noised; sounds are the Free Spoken Digit Dataset (Parquet, columns
audio and digit), noised. Rows pair a picture and a sound of the same digit; no picture and no recording is on both
sides. Three models are trained with `plait.fit` and its defaults: on both, on the picture alone, on the sound alone.
Prints a table and what it means; writes only to --out.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import soundfile
from PIL import Image
from sklearn.datasets import load_digits

import plait
from plait.data.table import read_table

PICTURE_NOISE, SOUND_NOISE = 3.0, 2.2  # chosen so that each single modality stays under 0.90
REPEATS = 5  # test rows per test recording, each with another picture and other noise


def spoilt_picture(pixels: np.ndarray, rng: np.random.Generator) -> bytes:
    """(8, 8) in 0..16 -> PNG of 32 x 32, blurred by a 3 x 3 mean and noised."""
    padded = np.pad(pixels, 1, mode="edge")
    blurred = sum(padded[i : i + 8, j : j + 8] for i in range(3) for j in range(3)) / 9
    noisy = np.clip(blurred + rng.normal(0, PICTURE_NOISE, (8, 8)), 0, 16)
    buffer = io.BytesIO()
    Image.fromarray((noisy * 15.9).astype(np.uint8)).resize((32, 32), Image.Resampling.BILINEAR).save(buffer, "PNG")
    return buffer.getvalue()


def spoilt_sound(data: bytes, rng: np.random.Generator) -> bytes:
    """WAV -> WAV with white noise of SOUND_NOISE times its own loudness."""
    wave, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    wave = wave + rng.normal(0, SOUND_NOISE * (wave.std() + 1e-6), len(wave)).astype(np.float32)
    buffer = io.BytesIO()
    soundfile.write(buffer, wave / max(1.0, np.abs(wave).max()), rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def pairs(sounds, pictures: np.ndarray, digits: np.ndarray, repeats: int, seed: int) -> dict:
    """Rows of a picture and a sound of one digit."""
    rng = np.random.default_rng(seed)
    rows: dict = {"picture": [], "sound": [], "digit": []}
    for _ in range(repeats):
        for audio, digit in zip(sounds["audio"].to_pylist(), sounds["digit"].to_pylist()):
            audio = audio["bytes"] if isinstance(audio, dict) else audio
            chosen = rng.choice(np.flatnonzero(digits == int(digit)))
            rows["picture"].append(spoilt_picture(pictures[chosen], rng))
            rows["sound"].append(spoilt_sound(audio, rng))
            rows["digit"].append(str(digit))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spoken", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/fusion_digits"))
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--only", choices=["both", "picture", "sound"])
    options = parser.parse_args()
    images = load_digits()
    held = np.random.default_rng(0).permutation(len(images.target)) < 400
    train = pairs(
        pq.read_table(options.spoken / "train.parquet"), images.images[~held], images.target[~held], 1, seed=1
    )
    test = pairs(
        pq.read_table(options.spoken / "val.parquet"), images.images[held], images.target[held], REPEATS, seed=2
    )
    runs = {}
    for name, inputs in (("both", ["picture", "sound"]), ("picture", ["picture"]), ("sound", ["sound"])):
        if options.only not in (None, name):
            continue
        folder = options.out / name
        shutil.rmtree(folder, ignore_errors=True)
        settings = {} if options.epochs is None else {"epochs": options.epochs}
        kinds = {k: {"picture": "image", "sound": "audio"}[k] for k in inputs}
        runs[name] = plait.fit(
            train,
            out=folder,
            target="digit",
            inputs=inputs,
            kinds=kinds,
            task="classify",
            fractions=(0.9, 0.1, 0.0),
            **settings,
        )
        found = runs[name].evaluate(test)
        runs[name].found = found
        print(
            f"trained on {name:8} {found.scores[0]}",
            *(f"{k} only {s.value:.3f}" for k, s in found.alone.items()),
            flush=True,
        )
    if options.only:
        return
    both, single = runs["both"].found, {k: runs[k].found.scores[0].value for k in ("picture", "sound")}
    better = max(single, key=single.get)
    print(
        f"gain over the better model of one modality ({better}): {both.scores[0].value - single[better]:+.3f}   "
        "wanted +0.03"
    )
    for k, value in single.items():
        own = both.alone[k].value
        print(f"{k} only: model of both {own:.3f}, model of {k} {value:.3f}, {own - value:+.3f}   wanted -0.02")
    empty = read_table({"picture": [None, None], "sound": [None, None]})
    answers = runs["both"].predict(empty).to_pylist()[0]
    usual = runs["both"].task.frequencies
    worst = max(abs(answers[f"p({c})"] - f) for c, f in zip(runs["both"].task.classes, usual))
    print(f"a row with nothing: largest difference from the training set's class frequencies {worst:.1e}")


if __name__ == "__main__":
    main()
