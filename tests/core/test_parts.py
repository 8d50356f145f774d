"""Systems made of other systems, which their rows name: built, first weights, published weights of each part."""

from __future__ import annotations

import textwrap
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import plait
from plait.core import catalog
from plait.core.catalog import model_info
from plait.core.recipe import Recipe
from plait.errors import UsageError
from plait.runs.vocabulary import check_vocabulary, published_tokenizer

SEES, READS = "vit_tiny_patch16_224", "bert_l2_h128"
DUO = f'''
"""Duo: a picture system and a text system behind a bridge. 2026.

New here: nothing.
"""
import torch
from torch import nn
from plait.core.weights import Rename

class Duo(nn.Module):
    takes = ("image", "text")
    fits = ()

    def __init__(self, *, vision, words, embed):
        super().__init__()
        self.vision, self.words = vision, words
        self.bridge = nn.ModuleDict({{"image": nn.Linear(vision.width, embed), "text": nn.Linear(words.width, embed)}})
        self.embed_width = embed
        self.logit_scale = nn.Parameter(torch.empty(1))

    def reset(self):
        nn.init.constant_(self.logit_scale, 2.0)

    def embed(self, batch):
        image = self.vision.pool(self.vision.tokens(batch["image"]))
        text = self.words.pool(self.words.tokens(batch["text"], batch.get("keep", {{}}).get("text")))
        return {{s: nn.functional.normalize(self.bridge[s](v), dim=-1) for s, v in (("image", image), ("text", text))}}

MODEL = Duo
TAKES = ("image", "text")
ROLES = ("embedder",)
DEFAULT = "nano"
PARTS = ("vision", "words")
SIZES = {{
    "toy": dict(vision="vit_toy", words="bert_toy", embed=8),
    "nano": dict(vision="vit_nano", words="bert_nano", embed=16),
    "tiny": dict(vision="{SEES}", words="{READS}", embed=16),
    "tuned": dict(vision="{SEES}", words="{READS}", embed=16),
}}
WEIGHTS = {{"tuned": dict(hub="me/bridge", source="official", licence="mit", part="bridge")}}
RULES = {{"official": [Rename("{{modality}}_proj.{{p}}", "{{modality}}.{{p}}")]}}
'''


@pytest.fixture(autouse=True)
def duo(tmp_path, monkeypatch):
    """A catalogue that has the system `duo` too."""
    room = tmp_path / "rooms" / "pairs"
    room.mkdir(parents=True)
    (room / "duo.py").write_text(textwrap.dedent(DUO))
    import plait.systems.pairs

    monkeypatch.setattr(plait.systems.pairs, "__path__", [*plait.systems.pairs.__path__, str(room)])
    known = catalog.systems()
    monkeypatch.setattr(catalog, "systems", cache(lambda: known | {"duo": catalog._read(room / "duo.py")}))


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A cache of the hub in which random weights of both parts lie as they are published."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for seed, name in enumerate((SEES, READS), 5):
        row = model_info(name).weights
        publish(tmp_path / "hub", row, plait.save_weights(plait.create_model(name, seed=seed), row["source"]))
    return tmp_path / "hub"


def publish(cache: Path, row: dict, state: dict) -> None:
    home = cache / f"models--{row['hub'].replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("0" * 40)
    path = home / "snapshots" / ("0" * 40) / row["file"]
    path.parent.mkdir(parents=True)
    state = {k: v.contiguous() for k, v in state.items()}
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)


def same(module: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = module.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def test_a_row_names_models_and_the_class_is_handed_them():
    info = model_info("duo_toy")
    assert info.parts == {"vision": "vit_toy", "words": "bert_toy"} and "duo_tiny" in plait.list_models("duo*")
    assert info.parameters == 1 + sum(model_info(n).parameters for n in info.parts.values()) + 2 * (8 * 32 + 8)
    model = plait.create_model("duo_toy")
    assert [type(m).__name__ for m in (model.vision, model.words)] == ["ViT", "BERT"]
    vectors = model.embed({"image": torch.zeros(2, 3, 32, 32), "text": torch.ones(2, 5, dtype=torch.int64)})
    assert all(v.shape == (2, 8) and v.isfinite().all() for v in vectors.values())
    other = plait.create_model("duo_toy", words="bert_nano")
    assert other.words.width == model_info("bert_nano").arguments["width"]
    with pytest.raises(ValueError, match="no model is named 'bert_nanoo': did you mean bert_nano"):
        plait.create_model("duo_toy", words="bert_nanoo")


def test_first_weights_are_each_parts_own_and_follow_the_seed():
    model = plait.create_model("duo_toy", seed=4)
    assert same(model.vision, plait.create_model("vit_toy", seed=4))
    assert same(model.words, plait.create_model("bert_toy", seed=4))
    assert same(model, plait.create_model("duo_toy", seed=4)) and not same(model, plait.create_model("duo_toy", seed=5))
    assert model.logit_scale.item() == 2.0 and not any(p.is_meta for p in model.parameters())


def test_each_part_brings_its_own_published_weights(hub):
    model = plait.create_model("duo_tiny", pretrained=True)
    assert same(model.vision, plait.create_model(SEES, seed=5)) and same(model.words, plait.create_model(READS, seed=6))
    assert same(model.bridge, plait.create_model("duo_tiny").bridge)  # nobody published it: it starts anew
    half = plait.create_model("duo_tiny", pretrained=True, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    with pytest.raises(ValueError, match="bert_toy has no published weights"):
        plait.create_model("duo_tiny", words="bert_toy", pretrained=True)


def test_what_is_published_of_the_whole_goes_between_its_parts(hub):
    with pytest.raises(ValueError, match="me/bridge"):
        plait.create_model("duo_tuned", pretrained=True)
    trained = plait.create_model("duo_tuned", seed=9)
    state = {k.replace(".", "_proj.", 1): v for k, v in trained.bridge.state_dict().items()}
    publish(hub, model_info("duo_tuned").weights, state)
    model = plait.create_model("duo_tuned", pretrained=True)
    assert same(model.bridge, trained.bridge) and same(model.words, plait.create_model(READS, seed=6))


def test_one_file_may_hold_the_whole(tmp_path):
    trained = plait.create_model("duo_toy", seed=9)
    save_file(trained.state_dict(), tmp_path / "model.safetensors")
    assert same(plait.create_model("duo_toy", pretrained=tmp_path / "model.safetensors"), trained)
    short = {k: v for k, v in trained.state_dict().items() if k != "words.pooler.bias"}
    save_file(short, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"words\.pooler\.bias"):
        plait.create_model("duo_toy", pretrained=tmp_path / "model.safetensors")


def test_a_recipe_keeps_the_names_of_parts():
    made = Recipe("duo_toy", {"words": "bert_nano"})
    assert same(made.build(seed=2), plait.create_model("duo_toy", words="bert_nano", seed=2))
    assert (
        made.build_on_meta().state_dict().keys() == plait.create_model("duo_toy", words="bert_nano").state_dict().keys()
    )


def test_pictures_and_texts_are_read_as_the_parts_read_them(tmp_path):
    row, sees, reads = (model_info(n).weights for n in ("duo_tuned", SEES, READS))
    assert [row[k] for k in ("mean", "crop_pct", "interpolation")] == [
        sees[k] for k in ("mean", "crop_pct", "interpolation")
    ]
    assert [row[k] for k in ("tokenizer", "begin", "end")] == [reads[k] for k in ("tokenizer", "begin", "end")]
    assert row["licence"] == "mit" and row["hub"] == "me/bridge" and "hub" not in model_info("duo_tiny").weights
    with pytest.raises(UsageError, match="give tokenizer.json of .*bert-base-uncased"):
        published_tokenizer(model_info("duo_tuned"), str(tmp_path / "duo.safetensors"))
    words = {"vocab": 30522, "cls": 101, "sep": 102, "mask": 103}
    check_vocabulary(model_info("duo_tiny"), words, "it")
    with pytest.raises(UsageError, match="30,522 words, got 290"):
        check_vocabulary(model_info("duo_tiny"), words | {"vocab": 290}, "it")
