"""Checkpoints: whole or not there, whatever happens while they are written and afterwards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from plait.errors import DataError
from plait.train import checkpoint

ROOT = Path(__file__).parents[2]
FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "files.json")


def tensors(number: int) -> dict:
    weight = torch.full((50, 40), float(number))
    return dict(
        model={
            "a.weight": weight,
            "a.tied": weight,
            "half": weight[:3].bfloat16(),
            "count": torch.tensor(number),
            "mask": weight[0] > 1,
        },
        optimizer={"a.weight:exp_avg": weight.T, "a.weight:step": torch.tensor(float(number))},
        state={},
    )


def whole(found: checkpoint.Checkpoint) -> int:
    """The number of a checkpoint all of whose parts are of one save."""
    number = found.state["number"]
    for part, content in tensors(number).items():
        assert found.tensors[part].keys() == content.keys()
        for name, value in content.items():
            assert torch.equal(found.tensors[part][name], value) and found.tensors[part][name].dtype == value.dtype
    return number


def save(folder: Path, number: int) -> Path:
    return checkpoint.save(folder, tensors(number), dict(number=number, text="ü"))


def test_round_trip_keeps_the_last_two(tmp_path):
    assert checkpoint.load(tmp_path) is None
    for number in range(1, 5):
        made = save(tmp_path, number)
        assert whole(checkpoint.load(tmp_path)) == number
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["000003", "000004"]
    assert made == tmp_path / "checkpoints" / "000004"
    assert torch.equal(load_file(made / "model.safetensors")["a.weight"], tensors(4)["model"]["a.weight"])
    assert not [p for p in tmp_path.rglob("*") if p.suffix not in ("", ".json", ".safetensors")]
    checkpoint.remove(tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", ["cut", "flip", "empty", "gone"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, file, harm):
    save(tmp_path, 1)
    damage(save(tmp_path, 2) / file, harm)
    with pytest.warns(UserWarning, match=f"000002.{file} is .*from the checkpoint before it, .*000001"):
        assert whole(checkpoint.load(tmp_path)) == 1
    assert whole_after_next_save(tmp_path) == 3
    damage(tmp_path / "checkpoints" / "000003" / file, harm)
    shutil.rmtree(tmp_path / "checkpoints" / "000002")
    with pytest.raises(ValueError, match=f"no checkpoint of .* can be read: .*000003.{file} is .*without resuming"):
        checkpoint.load(tmp_path)


def whole_after_next_save(folder: Path) -> int:
    save(folder, 3)
    return whole(checkpoint.load(folder))


def damage(path: Path, harm: str) -> None:
    data = path.read_bytes()
    if harm == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif harm == "flip":  # in the middle of the numbers, where only a checksum sees it
        middle = data.index(b'"crc32":') + 9 if path.name == "files.json" else len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    elif harm == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()


CRASH = """
import os, signal, sys
from pathlib import Path
import tests.train.test_checkpoint as t

WATCHED = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir", "shutil.rmtree",
           "os.link")
folder, left, on = Path(sys.argv[1]), 0, False


def watch(event, arguments):
    global left
    if on and event in WATCHED:
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)


sys.addaudithook(watch)
for moment in range(1000):  # a child for every moment: it dies just before its n-th touch of the file system
    here = folder / str(moment)
    child = os.fork()
    if child == 0:
        t.save(here, 1), t.save(here, 2)
        left, on = moment, True
        t.save(here, 3)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL
print(moment)
"""


@pytest.mark.filterwarnings("error")  # a kill leaves nothing that looks damaged
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_every_moment_of_a_save(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CRASH, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    moments = int(done.stdout)
    assert moments > 20
    found = [whole(checkpoint.load(tmp_path / str(m))) for m in range(moments)]
    assert found == sorted(found) and set(found) == {2, 3}
    for m in range(moments):  # the next save clears the wreck away
        save(tmp_path / str(m), 4)
        assert whole(checkpoint.load(tmp_path / str(m))) == 4
        assert len(list((tmp_path / str(m) / "checkpoints").iterdir())) == 2


LIMITED = """
import resource, sys
from pathlib import Path
import tests.train.test_checkpoint as t

t.save(Path(sys.argv[1]), 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    t.save(Path(sys.argv[1]), 2)
except t.DataError as error:
    print(error)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs resource limits")
def test_a_refused_write_leaves_the_one_before_whole(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (
        "could not save a checkpoint in" in done.stdout and "File too large" in done.stdout and "000001" in done.stdout
    )
    assert whole(checkpoint.load(tmp_path)) == 1
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["000001"]


def test_a_full_disk_is_said_and_leaves_the_one_before_whole(tmp_path):
    if not (sys.platform == "linux" and os.geteuid() == 0):
        pytest.skip("needs the right to mount a small disk")
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(tmp_path)], capture_output=True
    ).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    try:
        save(tmp_path, 1)
        kept = (tmp_path / "kept").open("wb")
        kept.write(bytes(30_000))
        kept.close()
        for number in (2, 3):
            with pytest.raises(
                DataError, match="disk is full .0 MB free.; the one before it is whole .*000001.*Make room there"
            ):
                save(tmp_path, number)
        assert whole(checkpoint.load(tmp_path)) == 1
        (tmp_path / "kept").unlink()
        save(tmp_path, 2)
        assert whole(checkpoint.load(tmp_path)) == 2
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_the_seal_lists_every_file(tmp_path):
    made = save(tmp_path, 1)
    seal = json.loads((made / "files.json").read_text())["files"]
    assert {*seal, "files.json"} == {p.name for p in made.iterdir()}
    assert all(entry["bytes"] == (made / name).stat().st_size for name, entry in seal.items())
