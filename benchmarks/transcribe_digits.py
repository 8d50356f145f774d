"""Strings of two to five spoken digits: how many words does Zipformer nano get wrong, trained from nothing on one core?

    python benchmarks/transcribe_digits.py --spoken spoken_digits

Recordings of the Free Spoken Digit Dataset (Parquet: audio, digit, speaker) of one speaker are laid end to end with
short pauses. Training and validation strings are made of `train.parquet`, from different recordings; test strings of
`val.parquet`, whose recordings occur nowhere else. With --new-speaker NAME that speaker is heard in the test alone.
Trains with `plait.fit`; prints the error rates with 95% intervals, the seconds of CPU time, and some answers; writes
only to --out.
"""

from __future__ import annotations

import argparse
import io
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch

import plait
from plait.train.memory import keep_memory

WORDS = "zero one two three four five six seven eight nine".split()
RATE, PAUSE = 8000, 0.15  # Hz; seconds before a digit, at most


def strings(table: pa.Table, count: int, seed: int) -> dict[str, list]:
    """`count` strings of digits, each of one speaker: sounds (WAV) and their texts."""
    rng = np.random.default_rng(seed)
    sounds = [soundfile.read(io.BytesIO(cell), dtype="float32")[0] for cell in table["audio"].to_pylist()]
    digit, speaker = np.asarray(table["digit"]), np.asarray(table["speaker"])
    rows: dict = {"sound": [], "said": []}
    for _ in range(count):
        chosen = rng.choice(np.flatnonzero(speaker == rng.choice(np.unique(speaker))), rng.integers(2, 6))
        parts = [part for i in chosen for part in (np.zeros(int(rng.uniform(0, PAUSE) * RATE), np.float32), sounds[i])]
        out = io.BytesIO()
        soundfile.write(out, np.concatenate(parts), RATE, format="WAV", subtype="PCM_16")
        rows["sound"].append(out.getvalue())
        rows["said"].append(" ".join(WORDS[digit[i]] for i in chosen))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spoken", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/transcribe_digits"))
    parser.add_argument("--strings", type=int, default=1600, help="training strings")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--system", default="zipformer_nano")
    parser.add_argument("--augment", type=float, default=0.0)
    parser.add_argument("--new-speaker")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    made, held = (pq.read_table(options.spoken / f"{name}.parquet") for name in ("train", "val"))
    if options.new_speaker:
        known = [np.asarray(t["speaker"]) != options.new_speaker for t in (made, held)]
        made, held = made.filter(pa.array(known[0])), held.filter(pa.array(~known[1]))
    watch = np.random.default_rng(1).random(len(made)) < 0.1
    parts = {
        "train": strings(made.filter(pa.array(~watch)), options.strings, options.seed + 2),
        "val": strings(made.filter(pa.array(watch)), 100, options.seed + 3),
        "test": strings(held, 400, options.seed + 4),
    }
    table = {k: [cell for rows in parts.values() for cell in rows[k]] for k in ("sound", "said")}
    table["split"] = [name for name, rows in parts.items() for _ in rows["said"]]
    shutil.rmtree(options.out, ignore_errors=True)
    settings = dict(
        task="transcribe", target="said", split="split", system=options.system, epochs=options.epochs, seed=options.seed
    )
    begun = time.process_time()
    run = plait.fit(
        pa.table(table), out=options.out, precision="fp32", device="cpu", augment=options.augment, **settings
    )
    spent = time.process_time() - begun
    found = run.assessments["test"]
    without = {s.name: s.value for s in found.baseline}
    print(
        f"\n{len(parts['train']['said']):,} training strings, {options.epochs} epochs, {spent:.0f} s of CPU time in all"
    )
    for score in found.scores:
        print(
            f"{score.name:22} {score.value:.3f} [{score.low:.3f}, {score.high:.3f}]   commonest text "
            f"{without[score.name]:.3f}"
        )
    test = pa.table(parts["test"]).slice(0, 100)
    for beam in (0, 8):
        print(f"first 100, beam {beam}: {run.evaluate(test, beam=beam).scores[0]}")
    for truth, answer in list(zip(test["said"].to_pylist(), run.predict(test)["said"].to_pylist()))[:8]:
        print(f"{'  ' if truth == answer else '! '}{truth:34} -> {answer}")


if __name__ == "__main__":
    main()
