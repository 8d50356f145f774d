"""Weights from files to models: lazily, cast, in shards, within the file's size; what the file lacks, and its fate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import plait
from plait.core.catalog import build, model_info, systems
from plait.core.init import initialise_rest
from plait.core.weight_files import read_weights
from plait.core.weights import Join, Rename, Split, assign, converted
from plait.errors import PlaitError

ViT = "vit_toy"
every_system = pytest.mark.parametrize("name", [f"{s}_toy" for s in systems()])
FLOATS = [torch.float32, torch.float16, torch.bfloat16]


def saved(path: Path, model: nn.Module, dtype=torch.float32) -> Path:
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


def same(a: nn.Module, b: nn.Module) -> None:
    """Bit for bit, buffers that are not saved included."""
    for x, y in (
        (dict(a.named_parameters()), dict(b.named_parameters())),
        (dict(a.named_buffers()), dict(b.named_buffers())),
    ):
        assert x.keys() == y.keys()
        for key in x:
            assert x[key].dtype == y[key].dtype and torch.equal(x[key], y[key]), key
            assert x[key].requires_grad == y[key].requires_grad, key


@every_system
def test_loaded_is_what_was_saved(name, tmp_path):
    model = plait.create_model(name, seed=3)
    same(plait.create_model(name, pretrained=saved(tmp_path / "w.safetensors", model)), model)


@every_system
def test_dtype_is_what_to_makes_of_it(name, tmp_path):
    model = plait.create_model(name, seed=3)
    path = saved(tmp_path / "w.safetensors", model)
    same(plait.create_model(name, pretrained=path, dtype=torch.bfloat16), model.to(torch.bfloat16))
    same(plait.create_model(name, seed=3, dtype=torch.bfloat16), model)


@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
@pytest.mark.parametrize("file", FLOATS)
@pytest.mark.parametrize("dtype", [None, *FLOATS])
def test_a_file_of_any_float_gives_float32_or_what_is_asked(file, dtype, ending, tmp_path):
    model = plait.create_model(ViT, seed=3)
    loaded = plait.create_model(ViT, pretrained=saved(tmp_path / f"w{ending}", model, file), dtype=dtype)
    same(loaded, model.to(file).to(dtype or torch.float32))


def test_dtype_must_float():
    with pytest.raises(ValueError, match="torch.int8, expected a floating one"):
        plait.create_model(ViT, dtype=torch.int8)


@pytest.mark.parametrize("name", [f"{s}_toy" for s in systems() if not model_info(f"{s}_toy").parts])
def test_what_is_not_given_starts_as_without_a_file(name):
    """Every second branch of the model is assigned, the others start: numbers of `seed`, whatever was drawn before.
    A model that is made of others starts part by part (tests/core/test_parts.py)."""
    start, other = plait.create_model(name, seed=1), plait.create_model(name, seed=2)
    model = build(name)
    given = {child for i, (child, _) in enumerate(model.named_children()) if i % 2}
    state = {k: v for k, v in other.state_dict().items() if k.split(".")[0] in given}
    for key, tensor in state.items():
        place, _, last = key.rpartition(".")
        table = model.get_submodule(place)._parameters
        if last in table:
            table[last] = nn.Parameter(tensor, requires_grad=table[last].requires_grad)
        else:
            model.get_submodule(place)._buffers[last] = tensor
    own = model.state_dict()
    initialise_rest(model, seed=1)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, state.get(key, start.state_dict()[key])), key
        assert key not in state or tensor.data_ptr() == own[key].data_ptr()
    for (key, ours), (_, theirs) in zip(model.named_buffers(), start.named_buffers()):
        assert key in state or torch.equal(ours, theirs), key


# -- the file


@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
@pytest.mark.parametrize("mmap", [True, False])
def test_training_never_writes_to_the_file_and_outlives_it(ending, mmap, tmp_path):
    path = saved(tmp_path / f"w{ending}", plait.create_model(ViT, seed=3))
    before, model = path.read_bytes(), plait.create_model(ViT, pretrained=path, mmap=mmap)
    want = {k: v.clone() for k, v in plait.create_model(ViT, pretrained=path, mmap=False).state_dict().items()}
    model.head.weight.data.add_(1.0)
    assert path.read_bytes() == before
    other = saved(tmp_path / f"other{ending}", plait.create_model(ViT, seed=4))
    os.replace(other, path)
    path.unlink()
    want["head.weight"] += 1.0
    assert all(torch.equal(v, want[k]) for k, v in model.state_dict().items())


def test_without_mmap_the_file_may_be_overwritten(tmp_path):
    path = saved(tmp_path / "w.safetensors", plait.create_model(ViT, seed=3))
    model = plait.create_model(ViT, pretrained=path, mmap=False)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    same(model, plait.create_model(ViT, seed=3))


def test_mmap_shares_memory_with_the_file_and_false_does_not(tmp_path):
    path = saved(tmp_path / "w.safetensors", plait.create_model(ViT, seed=3))

    def mapped(model):
        places = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
        spans = [[int(x, 16) for x in p[0].split("-")] for p in places]
        return [any(a <= p.data_ptr() < b for a, b in spans) for p in model.parameters()]

    if not Path("/proc/self/maps").exists():
        pytest.skip("no /proc")
    assert all(mapped(plait.create_model(ViT, pretrained=path)))
    assert not any(mapped(plait.create_model(ViT, pretrained=path, mmap=False)))


def test_a_tensor_may_lie_askew(tmp_path):
    """As the format allows: an odd number of bytes, then float32."""
    numbers = torch.randn(5)
    header = {
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "b": {"dtype": "F32", "shape": [5], "data_offsets": [3, 23]},
        "c": {"dtype": "BF16", "shape": [0, 4], "data_offsets": [23, 23]},
    }
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + bytes([1, 2, 3]) + numbers.numpy().tobytes()
    (tmp_path / "w.safetensors").write_bytes(content)
    found = read_weights(tmp_path / "w.safetensors")
    assert torch.equal(found["b"], numbers) and found["a"].tolist() == [1, 2, 3] and found["c"].shape == (0, 4)


def test_what_the_safetensors_library_writes_is_read_alike(tmp_path):
    kinds = [torch.float64, *FLOATS, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
    state = {str(d): torch.arange(7).to(d) for d in kinds} | {"c": torch.tensor([1j, 2]), "one": torch.tensor(3)}
    save_file(state, tmp_path / "w.safetensors", metadata={"format": "pt"})
    found, want = read_weights(tmp_path / "w.safetensors"), load_file(tmp_path / "w.safetensors")
    assert found.keys() == want.keys()
    assert all(found[k].dtype == v.dtype and torch.equal(found[k], v) for k, v in want.items())


@pytest.mark.parametrize(
    "change, why",
    [
        (lambda h: h["a"].update(dtype="F33"), "F33"),
        (lambda h: h["a"].update(data_offsets=[0, 8]), "does not fit its shape"),
        (lambda h: h["b"].update(data_offsets=[4, 20]), "does not fit its shape"),
        (lambda h: h["b"].update(shape=[-4]), "does not fit its shape"),
        (lambda h: h.pop("b"), "its tensors need"),
        (lambda h: h["a"].pop("shape"), "shape"),
    ],
)
def test_a_header_that_lies_is_refused(change, why, tmp_path):
    header = {
        "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "b": {"dtype": "F32", "shape": [4], "data_offsets": [16, 32]},
    }
    change(header)
    text = json.dumps(header).encode()
    (tmp_path / "w.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(32))
    with pytest.raises(ValueError, match=f"no safetensors file, or not a whole one: .*{why}"):
        read_weights(tmp_path / "w.safetensors")


# -- shards


def sharded(folder: Path, state: dict, ending: str = ".safetensors") -> Path:
    """`state` in three files, neighbours never together, and their index."""
    told = {}
    for i in range(3):
        part = {k: state[k] for k in sorted(state)[i::3]}
        name = f"model-{i}{ending}"
        save_file(part, folder / name) if ending == ".safetensors" else torch.save(part, folder / name)
        told |= dict.fromkeys(part, name)
    index = folder / f"model{ending}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": told}))
    return index


@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
@pytest.mark.parametrize("name", ["pvt_tiny_224", "vit_tiny_patch16_224", "vit_toy"])
def test_shards_load_as_one_file(name, ending, tmp_path):
    """The files of PVT hold q, k and v apart, here in different shards."""
    source = plait.model_info(name).weights.get("source", "plait")
    model = plait.create_model(name, seed=3)
    state = {k: v.contiguous() for k, v in plait.save_weights(model, source).items()}
    same(plait.create_model(name, pretrained=sharded(tmp_path, state, ending)), model)


def test_a_folder_is_as_good_as_the_file_in_it(tmp_path):
    model = plait.create_model(ViT, seed=3)
    with pytest.raises(PlaitError, match="holds no weights: expected model.safetensors or"):
        plait.create_model(ViT, pretrained=tmp_path)
    sharded(tmp_path, model.state_dict())
    same(plait.create_model(ViT, pretrained=tmp_path), model)
    saved(tmp_path / "model.safetensors", plait.create_model(ViT, seed=4))  # one file says all, shards or not
    same(plait.create_model(ViT, pretrained=tmp_path), plait.create_model(ViT, seed=4))


def test_shards_on_the_hub_are_fetched_each(tmp_path, monkeypatch):
    """From the cache of the hub's client, as it lies on a disk."""
    model, home = plait.create_model(ViT, seed=3), tmp_path / "models--someone--vit"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0" * 40)
    (home / "snapshots" / ("0" * 40)).mkdir(parents=True)
    index = sharded(home / "snapshots" / ("0" * 40), model.state_dict())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    row = {"hub": "someone/vit", "file": index.name, "source": "plait"}
    info = plait.model_info(ViT)
    info = replace(info, system=replace(info.system, weights={"toy": row}))
    monkeypatch.setattr("plait.core.create.model_info", lambda _: info)
    same(plait.create_model(ViT, pretrained=True), model)
    (index.parent / "model-1.safetensors").unlink()
    with pytest.raises(PlaitError, match="no weights from .*someone/vit/resolve/main/model-1.safetensors"):
        plait.create_model(ViT, pretrained=True)


def broken(index: Path, **change) -> None:
    told = json.loads(index.read_text())
    index.write_text(json.dumps(told | change))


def test_an_index_that_fits_nothing_is_refused(tmp_path):
    state = plait.create_model(ViT).state_dict()
    index = sharded(tmp_path, state)
    told = json.loads(index.read_text())["weight_map"]
    for change, why in (
        ({"weight_map": {}}, "its files must lie beside it"),
        ({"weight_map": dict.fromkeys(told, "../model-0.safetensors")}, "its files must lie beside it"),
        ({"weight_map": [1]}, "no index of weights"),
        ({"weight_map": {k: v for k, v in told.items() if k != "head.bias"}}, "does not hold what .*: head.bias"),
        ({"weight_map": told | {"more": "model-0.safetensors"}}, "does not hold what .*: more"),
        ({"weight_map": told | {"more": "model-3.safetensors"}}, "no weights file at .*model-3.safetensors"),
    ):
        broken(index, **change)
        with pytest.raises(ValueError, match=why):
            plait.create_model(ViT, pretrained=index)
    index.write_text("{")
    with pytest.raises(ValueError, match="no index of weights"):
        plait.create_model(ViT, pretrained=index)
    with pytest.raises(ValueError, match="no weights file at"):
        plait.create_model(ViT, pretrained=tmp_path / "none.safetensors.index.json")


# -- assigning


def test_tensors_that_share_memory_do_not_become_tied(tmp_path):
    one = torch.randn(4, 4)
    torch.save({"q": one, "k": one, "both": torch.randn(8, 4)}, tmp_path / "w.bin")
    with torch.device("meta"):
        model = nn.ModuleDict({x: nn.Linear(4, 4, bias=False) for x in "qkab"})
    rules = [Rename("q", "q.weight"), Rename("k", "k.weight"), Split("both", ["a.weight", "b.weight"])]
    assign(model, converted(read_weights(tmp_path / "w.bin"), rules), share=True)
    assert torch.equal(model.q.weight, model.k.weight)
    assert all(p.untyped_storage().nbytes() == p.nbytes for p in model.parameters())  # none holds on to more
    save_file(model.state_dict(), tmp_path / "w.safetensors")  # which refuses shared memory
    with torch.no_grad():
        model.q.weight.zero_()
    assert torch.equal(model.k.weight, one)


def test_a_group_is_released_when_it_was_read(tmp_path):
    save_file({x: torch.randn(2, 4) for x in "qkv"}, tmp_path / "w.safetensors")
    with torch.device("meta"):
        model = nn.ModuleDict({"qkv": nn.Linear(4, 6, bias=False)})
    weights, released = read_weights(tmp_path / "w.safetensors"), []
    assign(model, converted(weights, [Join("qkv", "qkv.weight")]), release=released.extend)
    assert {id(t) for t in released} == {id(t) for t in weights.values()}
    want = torch.cat([weights[x] for x in "qkv"])
    weights.release(weights.values())
    assert torch.equal(model.qkv.weight, want) and torch.equal(torch.cat([weights[x] for x in "qkv"]), want)


def test_what_does_not_fit_names_every_fault(tmp_path):
    state = plait.create_model(ViT).state_dict()
    state["head.bias"] = torch.zeros(3)
    del state["norm.bias"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"do not fit ViT: missing norm.bias; head.bias has shape \(3,\), expected"):
        plait.create_model(ViT, pretrained=tmp_path / "w.safetensors")


# -- memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="bytes of ru_maxrss are Linux's")
@pytest.mark.parametrize("file, copy", [("BF16", False), ("BF16", True), ("F32", False)])
def test_shards_load_within_their_size(file, copy, tmp_path):
    """A thirtieth of a language model; `python -m tests.core.decoder` loads all of it."""
    options = [str(tmp_path), "--part", "0.03", "--file", file, "--use", *["--copy"] * copy]
    done = subprocess.run(
        [sys.executable, "-m", "tests.core.decoder", *options], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    wanted = 2 * found["parameters"]  # bytes in bfloat16
    assert wanted > 4e8 and found["used"] - found["before"] < 1.2 * wanted
    assert copy or file != "BF16" or found["peak"] - found["before"] < 0.5 * wanted
