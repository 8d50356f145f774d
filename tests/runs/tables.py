"""Small tables of every kind, in which the target can be told from each input."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import soundfile
from PIL import Image

WORDS = ("red", "green", "blue")
COLUMNS = {
    "image": "photo",
    "text": "note",
    "audio": "sound",
    "number": "size",
    "category": "mark",
    "vector": "point",
    "series": "trace",
    "points": "cloud",
}
TARGETS = {
    "classify": "label",
    "ordinal": "label",
    "regress": "amount",
    "match": "true",
    "transcribe": "said",
    "caption": "said",
    "write": "said",
    "answer": "said",
    "recall": "said",
    "restore": "clear",
    "generate": "photo",
    "detect": "things",
}


def named(kinds) -> dict[str, str]:
    """{column: kind}; another one of a kind is numbered."""
    given = list(kinds)
    numbers = [given[:i].count(kind) for i, kind in enumerate(given)]
    return {f"{COLUMNS[kind]}{n or ''}": kind for kind, n in zip(given, numbers)}


def table(kinds, rows: int = 48, seed: int = 0) -> pa.Table:
    """A column for each of `kinds`, the targets of all tasks, and trajectories."""
    rng = np.random.default_rng(seed)
    c = rng.integers(0, 3, rows)
    make = {
        "image": lambda: [_png(rng, i) for i in c],
        "text": lambda: [f"{WORDS[i]} thing {j} of them" for j, i in enumerate(c)],
        "audio": lambda: [_wav(rng, i) for i in c],
        "number": lambda: (c + rng.normal(0, 0.1, rows)).tolist(),
        "category": lambda: [f"m{i}" for i in c],
        "points": lambda: [((1 + i) * rng.normal(0, 0.3, (9 + j % 5, 3))).tolist() for j, i in enumerate(c)],
        "series": lambda: [(i + rng.normal(0, 0.1, 9 + j % 5)).tolist() for j, i in enumerate(c)],
        "vector": lambda: np.eye(3)[c] + rng.normal(0, 0.1, (rows, 3)),
    }
    columns = {name: make[kind]() for name, kind in named(kinds).items()}
    columns = {n: list(map(list, v)) if isinstance(v, np.ndarray) else v for n, v in columns.items()}
    truth = {"label": [WORDS[i] for i in c], "amount": (c * 1.5 + rng.normal(0, 0.1, rows)).tolist()}
    truth["things"] = [[{"label": WORDS[i], "box": [j % 5, i, j % 5 + 6, i + 9]}] * (j % 3) for j, i in enumerate(c)]
    steps = [9 + j % 5 for j in range(rows)]
    played = {
        name: [rng.normal(i, 0.1, (n, width)).tolist() for i, n in zip(c, steps)]
        for name, width in (("states", 3), ("actions", 2))
    }
    played["rewards"] = [rng.normal(i, 0.1, n).tolist() for i, n in zip(c, steps)]
    return pa.table(
        {**columns, **truth, **played, "true": rng.integers(0, 2, rows) == 1, "said": [WORDS[i] for i in c]}
    )


def _png(rng: np.random.Generator, i: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray((60 * i + rng.integers(0, 60, (16, 16, 3))).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def _wav(rng: np.random.Generator, i: int) -> bytes:
    out = io.BytesIO()
    wave = np.sin(np.arange(4000) * (0.1 + 0.1 * i)) * 0.3 + rng.normal(0, 0.01, 4000)
    soundfile.write(out, wave, 8000, format="WAV")
    return out.getvalue()
