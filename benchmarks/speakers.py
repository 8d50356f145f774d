"""Written and spoken digits, both spoilt, of a speaker never heard: does a model of both beat the sum of two models of
one modality each, also where cells are missing?

    python benchmarks/speakers.py --spoken spoken_digits --out runs/speakers

Rows as in fusion_digits.py, of three of four speakers; the fourth's, with pictures never seen, are asked. Each fold
trains three models by `plait.fit` with its defaults: on both, on the picture alone, on the sound alone. Late fusion
adds the log-probabilities of the latter two, less the prior. Then half of the cells go, at random, the same for all.
What is done already is not done again. Prints a table and writes --out/found.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fusion_digits import pairs
from sklearn.datasets import load_digits

import plait

KINDS = {"picture": "image", "sound": "audio"}


def tables(spoken: Path, speaker: str, seed: int) -> tuple[dict, dict]:
    """Training rows of the others, and rows of this one with other pictures."""
    found = pa.concat_tables([pq.read_table(spoken / f"{part}.parquet") for part in ("train", "val")])
    his = np.asarray(found["speaker"]) == speaker
    images = load_digits()
    held = np.random.default_rng(seed).permutation(len(images.target)) < 600
    train = pairs(found.filter(~his), images.images[~held], images.target[~held], 1, seed=10 * seed + 1)
    return train, pairs(found.filter(his), images.images[held], images.target[held], 2, seed=10 * seed + 2)


def log_p(run: plait.Run, table: dict) -> np.ndarray:
    """(n, K) log-probabilities of a table's rows."""
    answers = run.predict(pa.table(table))
    p = np.stack([np.asarray(answers[f"p({c})"]) for c in run.task.names], 1)
    return np.log(np.maximum(p, 1e-12))


def without(table: dict, there: dict[str, np.ndarray]) -> dict:
    return table | {n: [c if kept else None for c, kept in zip(table[n], there[n])] for n in KINDS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spoken", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/speakers"))
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--speakers", nargs="*")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    known = options.out / "found.json"
    found = json.loads(known.read_text()) if known.exists() else {}
    speakers = options.speakers or sorted(set(pq.read_table(options.spoken / "train.parquet")["speaker"].to_pylist()))
    for speaker in speakers:
        train, test = tables(options.spoken, speaker, options.seed)
        real = np.asarray(test["digit"])
        runs = {}
        for name, inputs in (("both", list(KINDS)), *((n, [n]) for n in KINDS)):
            folder = options.out / f"{speaker}_{options.seed}_{name}"
            if (folder / "report.json").exists():
                runs[name] = plait.load(folder)
                continue
            more = {} if options.epochs is None else {"epochs": options.epochs}
            runs[name] = plait.fit(
                pa.table({n: train[n] for n in [*inputs, "digit"]}),
                out=folder,
                target="digit",
                kinds={n: KINDS[n] for n in inputs},
                task="classify",
                fractions=(0.85, 0.15, 0.0),
                seed=options.seed,
                **more,
            )
        rng = np.random.default_rng(100 + options.seed)
        half = {n: rng.random(len(real)) < 0.5 for n in KINDS}
        for share, there in (("whole", dict.fromkeys(KINDS, np.ones(len(real), bool))), ("half", half)):
            rows = without(test, there)
            classes, prior = np.asarray(runs["both"].task.names), np.log(runs["both"].task.frequencies)
            single = {n: log_p(runs[n], {n: rows[n]}) for n in KINDS}
            late = prior + sum((single[n] - prior) * there[n][:, None] for n in KINDS)
            answers = {"both": log_p(runs["both"], {n: rows[n] for n in KINDS}), "late": late, **single}
            row = {name: float((classes[a.argmax(1)] == real).mean()) for name, a in answers.items()}
            found[f"{speaker} {options.seed} {share}"] = row
            print(speaker, options.seed, share, {k: round(v, 3) for k, v in row.items()}, flush=True)
        known.write_text(json.dumps(found, indent=1))
    for share in ("whole", "half"):
        rows = [v for k, v in found.items() if k.endswith(share)]
        print(share, {n: round(float(np.mean([r[n] for r in rows])), 4) for n in rows[0]}, f"mean of {len(rows)}")


if __name__ == "__main__":
    main()
