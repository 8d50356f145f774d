"""What stands around plait and may be broken: a torchvision that cannot be imported, and a disk that is full."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sklearn.datasets import load_wine

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
BROKEN = "raise RuntimeError('operator torchvision::nms does not exist')\n"  # what a torchvision of another torch says
USE = """
import sys, io
import numpy as np
from PIL import Image
import plait
model = plait.create_model("vit_toy")
rng, photos = np.random.default_rng(0), []
for i in range(60):
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 128, (9, 9, 3)).astype(np.uint8) + np.uint8(127 * (i % 2))).save(out, "PNG")
    photos.append(out.getvalue())
table = {"photo": photos, "text": [f"row {i}, as written" for i in range(60)], "label": ["dark", "light"] * 30}
run = plait.fit(table, target="label", out="run", system="auto_toy", epochs=1, image_size=32, folds=1)
assert run.predict(table).num_rows == 60
assert not {"torchvision", "torchaudio", "transformers", "timm"} & set(sys.modules)
try:
    import torchvision
except RuntimeError as error:
    print(error)
"""


def test_a_broken_torchvision_does_no_harm(tmp_path):
    for name in ("torchvision", "torchaudio", "transformers", "timm"):
        (tmp_path / "broken" / name).mkdir(parents=True)
        (tmp_path / "broken" / name / "__init__.py").write_text(BROKEN)
    path = os.pathsep.join([str(tmp_path / "broken"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", USE],
        cwd=tmp_path,
        env=ENVIRONMENT | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "operator torchvision::nms does not exist\n"  # the broken one did stand first


# -- a full disk: a file system of its own, of a given size, in a mount namespace that ends with the shell

SHELL = """
mount -t tmpfs -o size=$SIZE tmpfs disk || exit 99
head -c $OTHERS /dev/zero > disk/others
"$PYTHON" -m plait.cli fit wine.csv $OPTIONS --out disk/run --quiet 2> first.txt; echo $? > first.code
ls -A disk/run > left.txt
mount -o remount,size=64m disk
"$PYTHON" -m plait.cli $AGAIN --quiet 2> second.txt; echo $? > second.code
cp -r disk/run after
"""
OPTIONS = "--target cultivar --system auto_tiny --epochs 2 --precision fp32"


def mounted(folder: Path, size: str, others: int, again: str) -> subprocess.CompletedProcess:
    """Fit on a disk of `size` that already holds `others` bytes; then make room and call plait `again`."""
    (folder / "disk").mkdir()
    wine = load_wine(as_frame=True).frame
    wine["cultivar"] = wine.pop("target").map({0: "red", 1: "white", 2: "rose"})
    wine.to_csv(folder / "wine.csv", index=False)
    words = {
        "PYTHONPATH": str(ROOT),
        "PYTHON": sys.executable,
        "SIZE": size,
        "OTHERS": str(others),
        "OPTIONS": OPTIONS,
        "AGAIN": again,
    }
    shell = ["unshare", "-rm", "sh", "-c", SHELL]
    return subprocess.run(shell, cwd=folder, env=ENVIRONMENT | words, capture_output=True, text=True, timeout=200)


def may_mount() -> bool:
    words = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=64k tmpfs /mnt"]
    return shutil.which("unshare") is not None and subprocess.run(words, capture_output=True).returncode == 0


@pytest.mark.skipif(sys.platform != "linux" or not may_mount(), reason="this machine lets nobody mount a small disk")
@pytest.mark.parametrize(
    "size, others, said, again",
    [
        ("8k", 8192, "cannot write disk/run/splits.parquet: the disk is full", f"fit wine.csv {OPTIONS} -o disk/run"),
        ("600k", 0, "could not save a checkpoint in disk/run/checkpoints: the disk is full", "fit --resume disk/run"),
        (
            "6200k",
            0,
            "cannot write disk/run/model.safetensors: the disk is full. What was trained is in the",
            "fit --resume disk/run",
        ),
    ],
    ids=["at once", "at a checkpoint", "at the end"],
)
def test_a_full_disk(size, others, said, again, tmp_path):
    done = mounted(tmp_path, size, others, again)
    assert done.returncode == 0, done.stderr
    code, message = (tmp_path / "first.code").read_text().strip(), (tmp_path / "first.txt").read_text()
    assert code == "3" and message.startswith("plait: ") and message.count("\n") == 1 and said in message
    left = (tmp_path / "left.txt").read_text().split()
    assert "model.safetensors" not in left and not [name for name in left if name.startswith(".plait")]
    assert (tmp_path / "second.code").read_text().strip() == "0", (tmp_path / "second.txt").read_text()
    assert (tmp_path / "after" / "model.safetensors").exists() and (tmp_path / "after" / "report.html").exists()
