"""Sentence encoders: pooling, several texts of one tower, folders beside the file, what stands before a text."""

from __future__ import annotations

import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import plait
from plait.data.kinds import KINDS, Place
from plait.errors import UsageError
from plait.runs.console import Console
from plait.runs.prepare import prepare
from plait.runs.settings import Settings
from tests.published import WORDS, write_tokenizer

NAME = "sentence_encoder_toy"
SLOTS = {"text_0": {"kind": "text", "vocab": 64}, "text_1": {"kind": "text", "vocab": 64}}


def made(**arguments):
    return plait.create_model(NAME, **{"project": None, **arguments}).eval()


def example():
    ids = torch.randint(5, 64, (3, 12), generator=torch.Generator().manual_seed(0))
    return ids, torch.arange(12) < torch.tensor([12, 7, 3])[:, None]


@torch.no_grad()
@pytest.mark.parametrize(
    "tower", ["bert_toy", "roberta_toy", "distilbert_toy", "mpnet_toy", "llama_toy", "fnet_toy", "t5_toy"]
)
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_what_is_read_of_which_tower(tower, pooling):
    ids, keep = example()
    model = made(tower=tower, pooling=pooling)
    x = model.tower.tokens(ids, keep).x
    for row, n in enumerate(keep.sum(1)):
        want = {"mean": x[row, :n].mean(0), "cls": x[row, 0], "last": x[row, n - 1]}[pooling]
        torch.testing.assert_close(model(ids, keep)[row], F.normalize(want, dim=0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model(ids[row : row + 1, :n])[0], model(ids, keep)[row], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_several_texts_are_read_by_one_tower_and_an_absent_one_is_zero():
    ids, keep = example()
    model, plain = made(slots=SLOTS), made()
    assert model.takes == ("text_0", "text_1") and list(model.state_dict()) == list(plain.state_dict())
    present = {"text_0": torch.tensor([True, True, False])}
    found = model.embed({"text_0": ids, "text_1": ids.flip(0), "keep": {"text_0": keep}, "present": present})
    torch.testing.assert_close(found["text_0"][:2], plain(ids, keep)[:2])
    torch.testing.assert_close(found["text_1"], plain(ids.flip(0)))
    assert not found["text_0"][2].any()


@pytest.mark.parametrize(
    "arguments, why",
    [
        (dict(pooling="max"), "pooling: got 'max', expected one of mean, cls, last"),
        (dict(tower="vit_toy"), "tower: got ViT, expected an encoder or a writer of words alone"),
    ],
)
def test_what_gives_no_tokens_of_words_is_refused(arguments, why):
    with pytest.raises(ValueError, match=why):
        made(**arguments)


def test_the_layer_behind_lies_in_a_folder_of_its_own(tmp_path):
    name = "sentence_encoder_labse"
    small = dict(tower="bert_toy", vocab=64, project=16)
    model = plait.create_model(name, seed=3, **small)
    state = plait.save_weights(model, "sentence_transformers")
    dense = {k.removeprefix("2_Dense."): v for k, v in state.items() if k.startswith("2_Dense.")}
    assert list(dense) == ["linear.weight", "linear.bias"]
    save_file(
        {k: v.contiguous() for k, v in state.items() if not k.startswith("2_Dense.")}, tmp_path / "model.safetensors"
    )
    with pytest.raises(ValueError, match="missing project.bias, project.weight"):
        plait.create_model(name, pretrained=tmp_path, **small)
    (tmp_path / "2_Dense").mkdir()
    save_file(dense, tmp_path / "2_Dense" / "model.safetensors")
    for where in (tmp_path, tmp_path / "model.safetensors"):
        other = plait.create_model(name, pretrained=where, **small).state_dict()
        assert all(torch.equal(v, other[k]) for k, v in model.state_dict().items())


def test_a_tower_begins_with_what_another_run_learnt_and_a_size_is_found_by_its_own_name():
    tower = plait.create_model("bert_toy", seed=5)
    model = made(parts={"tower": tower.state_dict()})
    taken, state = model.tower.state_dict(), tower.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in taken.items())
    assert {k.split(".")[0] for k in state.keys() - taken.keys()} == {"pooler", "head"}
    with pytest.raises(ValueError, match=r"'minilm_l6': did you mean sentence_encoder_minilm_l6\?"):
        plait.model_info("minilm_l6")


def texts(n: int = 40) -> pa.Table:
    long = " ".join(WORDS * 40)
    cells = {"asked": [f"the cat on mat {i}" for i in range(n)], "said": [f"a red square {i} {long}" for i in range(n)]}
    return pa.table(cells | {"label": ["ab"[i % 2] for i in range(n)]})


def read(name: str, folder, **options):
    """What a run learns of its columns, and how it reads "the cat"."""
    usual = dict(system=name, pretrained=str(folder), max_tokens=None, kinds={"asked": "text", "said": "text"})
    schema = prepare(texts(), Settings(**usual | options), Console(quiet=True)).schema
    params = {c.name: c.params for c in schema.used("input")}
    return params, {n: KINDS["text"].encode("the cat", p, Place()).tolist()[1:-1] for n, p in params.items()}


BOTH = dict(task="retrieve", inputs=["asked", "said"])
ONE = dict(target="label", inputs=["asked"])


@pytest.mark.parametrize(
    "size, options, before",
    [
        ("e5_small_v2", BOTH, {"asked": "query: ", "said": "passage: "}),
        ("e5_small_v2", ONE, {"asked": "query: "}),
        ("bge_small_en_v1.5", BOTH, {"asked": "Represent this sentence for searching relevant passages: ", "said": ""}),
        ("bge_small_en_v1.5", ONE, {"asked": ""}),
        ("minilm_l6", BOTH, {"asked": "", "said": ""}),
    ],
)
def test_what_weights_were_trained_with_stands_before_a_text(size, options, before, tmp_path):
    name = f"sentence_encoder_{size}"
    write_tokenizer(plait.model_info(name), tmp_path)
    params, ids = read(name, tmp_path, **options)
    for column, text in before.items():
        assert params[column].get("prefix", "") == text
        bare = {k: v for k, v in params[column].items() if k != "prefix"}
        want = KINDS["text"].encode(f"{text}the cat", bare, Place()).tolist()[1:-1]
        assert ids[column] == want and len(want) == 2 + len(text.replace(":", " :").split())
        with pytest.raises(ValueError, match="empty text"):
            KINDS["text"].encode("\N{ZERO WIDTH SPACE}", params[column], Place())


def test_a_text_is_read_as_far_as_the_weights_were_used_to(tmp_path):
    for size, most in (("minilm_l6", 256), ("minilm_l12", 128), ("gte_small", 512)):
        write_tokenizer(plait.model_info(f"sentence_encoder_{size}"), tmp_path)
        params, _ = read(f"sentence_encoder_{size}", tmp_path, **BOTH)
        assert params["said"]["max_tokens"] == most and params["asked"]["max_tokens"] == 8
    params, _ = read("sentence_encoder_gte_small", tmp_path, **BOTH | dict(max_tokens=40))
    assert params["said"]["max_tokens"] == 40


def test_from_nothing_all_columns_have_the_same_words(tmp_path):
    params, _ = read("sentence_encoder_nano", "", **BOTH | dict(pretrained=False))
    assert params["asked"]["tokenizer"] == params["said"]["tokenizer"] and "prefix" not in params["asked"]
    with pytest.raises(
        UsageError, match="beside them: give tokenizer.json of https://huggingface.co/thenlper/gte-small"
    ):
        read("sentence_encoder_gte_small", tmp_path / "none", **BOTH)
