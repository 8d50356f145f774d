"""What is said in a sound, letter by letter: here each letter is a tone. On the command line:

plait fit calls.parquet --task transcribe --target said
plait predict runs/calls new.parquet -o texts.csv
"""

import io
import sys
from pathlib import Path

import numpy as np
import soundfile

import plait

out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples")
draw = np.random.default_rng(0)
TONES = {"a": 400, "b": 800, "c": 1600}  # Hz
rows: dict[str, list] = {"sound": [], "said": []}
for _ in range(120):
    said = "".join(draw.choice(list(TONES), draw.integers(2, 4)))
    time = np.arange(int(0.2 * 16_000)) / 16_000
    wave = np.concatenate([0.5 * np.sin(2 * np.pi * TONES[letter] * time) * np.hanning(len(time)) for letter in said])
    soundfile.write(file := io.BytesIO(), wave + 0.01 * draw.standard_normal(len(wave)), 16_000, format="WAV")
    rows["sound"].append(file.getvalue())
    rows["said"].append(said)

run = plait.fit(
    rows,
    task="transcribe",
    target="said",
    system="zipformer_toy",
    epochs=16,
    lr=5e-3,
    batch_size=16,
    augment=0.0,
    out=out / "calls",
)
print(*run.assessments["test"].scores, sep="\n")
print(run.predict({"sound": rows["sound"][:3]}).to_pandas())
