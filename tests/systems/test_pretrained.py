"""Published weights from a file, the hub or a URL: whole, for other classes, incomplete, hostile, out of reach."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import plait
from plait.core.catalog import build, systems
from plait.core.fetch import url_file
from tests.contract.examples import example, run

# One published size of each layout, with the toy's arguments: small, but read as the published file is.
ROWS = {
    (s.name, row["source"]): f"{s.name}_{size}"
    for s in systems().values()
    for size, row in s.weights.items()
    if "source" in row
}
every_layout = pytest.mark.parametrize("name", [pytest.param(n, id=f"{s}-{source}") for (s, source), n in ROWS.items()])
CLASSIFIERS = [s.name for s in systems().values() if "num_classes" in s.sizes["toy"] and not s.parts]
every_classifier = pytest.mark.parametrize("name", [n for (s, _), n in ROWS.items() if s in CLASSIFIERS])


def arguments(name: str, **more) -> dict:
    info = plait.model_info(name)
    own = inspect.signature(importlib.import_module(info.system.module).MODEL.__init__).parameters
    # not the published size's
    usual = {k: own[k].default for k in info.arguments if k in own and own[k].default is not inspect.Parameter.empty}
    made = {**usual, **info.system.sizes["toy"], **more}
    if plait.model_info(name).weights["source"].endswith(("retrieval", "heads")):
        made["guess"] = False
    return made


def published(name: str, folder: Path, suffix: str = ".safetensors", wrap: str = "", leave_out: str = "", **more):
    """A toy with weights of its own, and its file in the layout of the size's row."""
    row = plait.model_info(name).weights
    model = plait.create_model(name, seed=3, **arguments(name, **more)).eval()
    state = plait.save_weights(model.get_submodule(row.get("part", "")), row["source"])
    state = {k: v.contiguous() for k, v in state.items() if k != leave_out}
    path = folder / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({wrap: state, "epoch": 3} if wrap else state, path)
    return model, state, path


def copies(state: dict, key: str) -> list[str]:
    """The other keys of the same tensor."""
    tensor = state[key]
    return [k for k, v in state.items() if k != key and v.shape == tensor.shape and torch.equal(v, tensor)]


def loaded(name: str, path: Path, **more):
    return plait.create_model(name, pretrained=path, **arguments(name, **more)).eval()


@every_layout
@pytest.mark.parametrize("suffix, wrap", [(".safetensors", ""), (".bin", ""), (".pth", "state_dict"), (".pt", "model")])
def test_a_file_in_the_published_layout_loads_whole(name, suffix, wrap, tmp_path):
    model, _, path = published(name, tmp_path, suffix, wrap)
    other, part = loaded(name, path), plait.model_info(name).weights.get("part", "")
    if part:  # what was not published starts anew
        model, other = model.get_submodule(part), other.get_submodule(part)
        assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())
        return
    info = plait.model_info(name)
    batch, system = example(model), replace(info.system, roles=info.roles)  # what the size can do
    theirs = run(other, batch, system)
    assert all(torch.equal(v, theirs[k]) for k, v in run(model, batch, system).items())


@every_layout
def test_a_missing_key_is_refused(name, tmp_path):
    _, state, path = published(name, tmp_path)
    state = {k: v for k, v in state.items() if not copies(state, k)}  # of tied tensors are missed by nobody
    whole = [k for k in state if "head" in k]  # a classifier that is missing as a whole starts anew
    state = {k: v for k, v in state.items() if [k] != whole}
    for key in (min(state), max(state), next(k for k, v in state.items() if v.dim() > 1)):
        _, state, path = published(name, tmp_path, leave_out=key)
        assert key not in state
        with pytest.raises(ValueError, match="missing|incomplete"):
            loaded(name, path)


@every_classifier
@pytest.mark.parametrize("classes", [3, 0])
def test_other_classes_keep_the_body_and_start_the_head_anew(name, classes, tmp_path):
    model, _, path = published(name, tmp_path)
    other, fresh = (
        loaded(name, path, num_classes=classes),
        plait.create_model(name, **arguments(name, num_classes=classes)),
    )
    taken, start, old = other.state_dict(), fresh.state_dict(), model.state_dict()
    heads = {k for k in taken if k.startswith(other.classifier)}
    assert all(torch.equal(v, old[k]) for k, v in taken.items() if k not in heads)
    assert all(torch.equal(taken[k], start[k]) for k in heads) and bool(heads) == bool(classes)
    linears = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m.out_features == 10}
    found = {k.rpartition(".")[0] for k in old if k.startswith(other.classifier)}
    first = {f"{n.rpartition('.')[0]}.0" for n in linears}  # a head may begin with a layer of its own
    assert linears and linears <= found <= linears | first
    assert [p.requires_grad for p in other.parameters()] == [p.requires_grad for p in fresh.parameters()]
    batch = example(model)
    (slot,) = model.takes
    said, pooled = (
        other(batch[slot], batch["keep"].get(slot)),
        model.pool(model.tokens(batch[slot], batch["keep"].get(slot))),
    )
    assert said.shape[1] == (classes or pooled.shape[1])
    torch.testing.assert_close(other.pool(other.tokens(batch[slot], batch["keep"].get(slot))), pooled)


@every_classifier
def test_a_file_without_a_classifier_gets_one_only_where_classes_are_named(name, tmp_path):
    _, _, path = published(name, tmp_path, num_classes=0)
    assert loaded(name, path, num_classes=4)
    bare = ("bert", "dinov2", "distilbert", "fnet", "gemma_encoder", "mpnet", "roberta", "univitar")
    if plait.model_info(name).arguments.get("num_classes") == 0 or plait.model_info(name).system.name in bare:
        return  # published without a classifier
    rest = {k: v for k, v in arguments(name).items() if k != "num_classes"}
    with pytest.raises(ValueError, match="missing"):
        plait.create_model(name, pretrained=path, **rest)


@every_classifier
def test_other_classes_excuse_nothing_else(name, tmp_path):
    model, _, _ = published(name, tmp_path)
    key = next(
        k
        for k in plait.save_weights(model, plait.model_info(name).weights["source"])
        if "head" not in k and "classifier" not in k
    )
    _, _, path = published(name, tmp_path, leave_out=key)
    with pytest.raises(ValueError, match="missing|incomplete"):
        loaded(name, path, num_classes=3)


def test_our_own_layout_is_read_too(tmp_path):
    name = "vit_tiny_patch16_224"
    model, _, _ = published(name, tmp_path)
    save_file(model.state_dict(), tmp_path / "ours.safetensors")
    assert torch.equal(loaded(name, tmp_path / "ours.safetensors").head.weight, model.head.weight)
    assert torch.equal(loaded(name, tmp_path / "ours.safetensors", num_classes=4).norm.weight, model.norm.weight)
    save_file({k: v for k, v in model.state_dict().items() if k != "norm.bias"}, tmp_path / "ours.safetensors")
    with pytest.raises(ValueError, match="missing norm.bias"):
        loaded(name, tmp_path / "ours.safetensors")


def test_every_system_with_classes_says_which_keys_name_them():
    for system in systems().values():
        model = build(f"{system.name}_toy")
        if system.name in CLASSIFIERS:
            assert any(k.startswith(model.classifier) for k in model.state_dict()), system.name


class Hostile:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    _, state, _ = published("vit_tiny_patch16_224", tmp_path)
    torch.save({"state_dict": state, "args": Hostile(tmp_path / "ran")}, tmp_path / "hostile.pth")
    with pytest.raises(ValueError, match="none of its code is run"):
        loaded("vit_tiny_patch16_224", tmp_path / "hostile.pth")
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "hostile.pth", weights_only=False)
    assert (tmp_path / "ran").exists()  # the file is what it claims to be


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("keep", [0, 40, 2000])
def test_a_damaged_file_is_refused(suffix, keep, tmp_path):
    _, _, path = published("vit_tiny_patch16_224", tmp_path, suffix)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="weights"):
        loaded("vit_tiny_patch16_224", path)


@pytest.mark.parametrize("content", [3, {"state_dict": {"a": "text"}}, [torch.zeros(1)]])
def test_what_is_no_state_dict_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="no state dict"):
        loaded("vit_tiny_patch16_224", tmp_path / "other.pth")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """(address, paths asked for): a server of the files in `tmp_path`; what is asked for under /cut/ breaks off
    half-way."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            content = (tmp_path / Path(self.path).name).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if "/cut/" in self.path else content)

        def log_message(self, *_):
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    http = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}", asked
    http.shutdown()
    http.server_close()


def test_a_url_is_read_once_and_never_mistaken_for_another(server, tmp_path):
    address, asked = server
    model, _, _ = published("vit_tiny_patch16_224", tmp_path)
    for folder in ("a", "a", "b"):
        other = loaded("vit_tiny_patch16_224", f"{address}/{folder}/weights.safetensors")
        assert torch.equal(other.head.weight, model.head.weight)
    assert asked == ["/a/weights.safetensors", "/b/weights.safetensors"]


def test_shards_at_a_url_are_read_beside_their_index(server, tmp_path):
    address, asked = server
    model, state, _ = published("vit_tiny_patch16_224", tmp_path)
    told = {key: f"part-{i % 2}.safetensors" for i, key in enumerate(state)}
    for name in set(told.values()):
        save_file({k: v for k, v in state.items() if told[k] == name}, tmp_path / name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": told}))
    other = loaded("vit_tiny_patch16_224", f"{address}/a/model.safetensors.index.json")
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())
    assert asked == ["/a/model.safetensors.index.json", "/a/part-0.safetensors", "/a/part-1.safetensors"]


def test_a_broken_download_is_refused_and_leaves_nothing(server, tmp_path):
    address, _ = server
    published("vit_tiny_patch16_224", tmp_path)
    with pytest.raises(ValueError, match=r"/cut/weights.safetensors \(.*pretrained=PATH"):
        loaded("vit_tiny_patch16_224", f"{address}/cut/weights.safetensors")
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """(address, paths asked for): a hub of one commit, whose files are those of `tmp_path`."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self, body: bool) -> None:
            asked.append((self.command, self.path))
            content = (tmp_path / Path(self.path).name).read_bytes() if "/resolve/" in self.path else b""
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Repo-Commit", "c" * 40)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.end_headers()
            if body:
                self.wfile.write(content)

        def do_GET(self):
            self.answer(True)

        def do_HEAD(self):
            self.answer(False)

        def log_message(self, *_):
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}", asked
    http.shutdown()
    http.server_close()


def told(code: str, **surroundings: str) -> subprocess.CompletedProcess:
    """In a process of its own, since the hub's client reads its settings when it is imported."""
    env = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"} | surroundings
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)


def test_a_row_pins_a_revision_and_a_checksum(hub, tmp_path):
    """And what was fetched once is there without a network."""
    address, asked = hub
    name = "vit_tiny_patch16_224"
    _, _, path = published(name, tmp_path)
    path.rename(tmp_path / "model.safetensors")
    right = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    code = f"""if True:
        import plait
        from plait.core.catalog import systems
        row = systems()["vit"].weights["tiny_patch16_224"]
        for revision, sha256 in (("v1.0", {right!r}), ("{"c" * 40}", {right!r}), ("v1.0", "{"0" * 64}")):
            row.update(revision=revision, sha256=sha256)
            try:
                model = plait.create_model({name!r}, pretrained=True, **{arguments(name)!r})
                print(float(model.head.weight.sum()))
            except ValueError as error:
                print(error)
    """
    homes = dict.fromkeys(("HF_HOME", "TORCH_HOME"), str(tmp_path / "home"))
    done = told(code, HF_ENDPOINT=address, no_proxy="127.0.0.1", **homes)
    one, two, wrong = done.stdout.splitlines()
    assert one == two and wrong.startswith(f"the file from {address}/timm/vit_tiny") and "SHA-256" in wrong
    assert f"is {right[:12]}…, expected 000000000000…" in wrong and "/resolve/v1.0/model.safetensors" in wrong
    assert sum(command == "GET" and "/resolve/v1.0/" in path for command, path in asked) == 1
    done = told(code, HF_ENDPOINT="http://127.0.0.1:9", no_proxy="127.0.0.1", **homes)
    assert done.stdout.splitlines()[:2] == [one, two]


def test_a_url_has_a_checksum_too(server, tmp_path):
    address, asked = server
    (tmp_path / "weights.pth").write_bytes(b"not these")
    right = hashlib.sha256(b"not these").hexdigest()
    assert url_file(f"{address}/weights.pth", right).read_bytes() == b"not these"
    assert url_file(f"{address}/weights.pth", right) and asked == ["/weights.pth"]
    (tmp_path / "weights.pth").write_bytes(b"others")
    with pytest.raises(ValueError, match="is not the one that was published"):
        url_file(f"{address}/weights.pth", "0" * 64)
    assert url_file(f"{address}/weights.pth", right).read_bytes() == b"not these"  # what was there stays


def test_without_a_network_the_error_names_the_file_and_the_way_out(tmp_path):
    """At once: the hub's own client tries again for half a minute."""
    code = """if True:
        import time
        import plait
        begun = 0.0
        for name in ("vit_tiny_patch16_224", "albef_base", "meta_transformer_b16", "vit_giant_patch14_224"):
            try:
                import huggingface_hub
                begun = begun or time.monotonic()
                plait.create_model(name, pretrained=True)
            except ValueError as error:
                print(error)
        print(time.monotonic() - begun)
    """
    quiet = dict.fromkeys(("HF_HOME", "TORCH_HOME"), str(tmp_path)) | {"no_proxy": ""}
    quiet |= dict.fromkeys(("https_proxy", "http_proxy"), "http://127.0.0.1:9")
    done = told(code, **quiet)
    hub, albef, meta, nothing, seconds = done.stdout.splitlines()
    assert float(seconds) < 15, done.stderr
    assert "https://huggingface.co/timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k/resolve/main/model.safetensors" in hub
    assert "https://storage.googleapis.com/sfr-pcl-data-research/ALBEF/ALBEF.pth" in albef
    assert plait.model_info("meta_transformer_b16").weights["url"] in meta
    assert all("without a network" in line and "pretrained=PATH" in line for line in (hub, albef, meta))
    assert "no published weights" in nothing and not done.stderr
