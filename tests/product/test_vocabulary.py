"""Published text weights are read with their own tokenizer: fetched, found beside them, given, or the run stops."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import processors

import plait
from plait.core.catalog import build
from plait.data.kinds import KINDS, Place
from plait.data.kinds.base import FitOptions
from plait.errors import UsageError
from plait.runs.vocabulary import check_vocabulary, published_tokenizer
from tests.published import WORDS, fnet, write_tokenizer

BERT = "bert_l2_h128"
# One size of each family of words. XLM-V's 900,000 take too long to write.
FAMILIES = (
    "bert_base_uncased",
    "bert_base_chinese",
    "fnet_base",
    "clip_vit_b_32",
    "vitamin_clip_s",
    "mobileclip_s1",
    "vilt_b_32",
    "albef_base",
    "git_base",
    "beit3_base_patch16_224_retrieval",
)
PUBLISHED = {
    n: row for n in plait.list_models(takes="text") if {"hub", "url"} & set(row := plait.model_info(n).weights)
}
TEXT = [n for n, row in PUBLISHED.items() if "part" not in row]


def learnt(texts: list[str], tokenizer: Path | None = None, most: int | None = None) -> dict:
    column = pa.chunked_array([pa.array(texts)])
    return KINDS["text"].fit(column, FitOptions(Place(), None, most, 8000, tokenizer and str(tokenizer)))


def table(n: int = 60) -> pa.Table:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 6)) for _ in range(n)]
    return pa.table({"text": texts, "label": ["cat" if "cat" in t.split() else "none" for t in texts]})


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """The folder of random weights of the smallest BERT, as they are published: no tokenizer beside them."""
    folder = tmp_path_factory.mktemp("published")
    state = plait.save_weights(plait.create_model(BERT, seed=5), "google")
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors")
    return folder


def fit(folder: Path, tmp_path: Path, **more):
    options = dict(
        system=BERT, target="label", folds=1, pretrained=str(folder / "model.safetensors"), batch_size=32, epochs=1
    )
    return plait.fit(table(), out=tmp_path / "run", kinds={"text": "text"}, **options | more)


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_are_those_of_the_published_file(name, tmp_path):
    info = plait.model_info(name)
    path = write_tokenizer(info, tmp_path, drop=8 if name.startswith("beit3") else 0)  # 8 rows of its table are spare
    text = learnt(["the red cat"], path)
    check_vocabulary(info, text, path)
    begin, end = info.weights["begin"], info.weights["end"]
    ids = KINDS["text"].encode("the red cat", text, Place()).tolist()
    assert ids == [begin, 1004, 1006, 1001, end]
    assert published_tokenizer(info, str(tmp_path / "model.safetensors")) == path


@pytest.mark.parametrize("name", TEXT)
def test_a_vocabulary_learnt_from_a_table_is_never_that_of_published_weights(name):
    info = plait.model_info(name)
    with pytest.raises(UsageError, match=rf"not the tokenizer of {name}'s weights: expected .* got [\d,]+"):
        check_vocabulary(info, learnt(table()["text"].to_pylist()), "learnt")


@pytest.mark.parametrize("name, other", [("bert_base_uncased", "clip_vit_b_32"), ("clip_vit_b_32", "fnet_base")])
def test_another_family_of_as_many_words_is_refused(name, other, tmp_path):
    info, foreign = plait.model_info(name), plait.model_info(other)
    path = write_tokenizer(foreign, tmp_path)
    text = learnt(["the red cat"], path) | {"vocab": info.arguments.get("vocab", 30522 if name[0] == "b" else 49408)}
    with pytest.raises(UsageError, match="the begin token"):
        check_vocabulary(info, text, path)


@pytest.mark.parametrize("template, ends", [("<s> $A </s>", (0, 2)), ("$A </s>", (None, 2)), ("$A", (4, 5))])
def test_what_the_file_itself_puts_around_a_text_goes_before_names(template, ends, tmp_path):
    made = fnet(2000)
    made.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 0), ("</s>", 2)])
    made.save(str(tmp_path / "tokenizer.json"))
    text = learnt(["the cat"], tmp_path / "tokenizer.json")
    assert (text["cls"], text["sep"]) == ends
    first, last = ([i] if i is not None else [] for i in ends)
    assert KINDS["text"].encode("the cat", text, Place()).tolist() == [*first, 1004, 1001, *last]


def test_several_tokens_before_a_text_are_refused(tmp_path):
    made = fnet(2000)
    made.post_processor = processors.TemplateProcessing(
        single="<s> [CLS] $A", special_tokens=[("<s>", 0), ("[CLS]", 4)]
    )
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UsageError, match=r"\[0, 4\] before .* at most one each"):
        learnt(["the cat"], tmp_path / "tokenizer.json")


def test_a_few_rows_of_the_table_may_be_spare_and_no_more(tmp_path):
    info = plait.model_info("bert_base_uncased")
    for drop, fits in ((0, True), (300, True), (310, False), (-1, False)):
        path = write_tokenizer(info, tmp_path / str(drop), drop=drop)
        text = learnt(["the red cat"], path)
        assert text["vocab"] == 30522 - drop
        if fits:
            check_vocabulary(info, text, path)
        else:
            with pytest.raises(UsageError, match="30,522 words, got 30,"):
                check_vocabulary(info, text, path)


def test_the_mask_is_compared_where_the_model_has_one(tmp_path):
    info = plait.model_info("vilt_b_32")
    text = learnt(["the red cat"], write_tokenizer(info, tmp_path))
    check_vocabulary(info, text, "it")
    for wrong in (None, 104):
        with pytest.raises(UsageError, match=f"the mask token 103, got {wrong}"):
            check_vocabulary(info, text | {"mask": wrong}, "it")


def test_without_its_tokenizer_a_run_stops_and_says_which_file_to_give(published, tmp_path):
    with pytest.raises(UsageError, match="tokenizer.json of https://huggingface.co/google-bert/bert-base-uncased with"):
        fit(published, tmp_path)
    beit = plait.model_info("beit3_base_patch16_480_captioning")
    for source in (True, str(tmp_path / "beit3.pth"), "https://example.org/beit3.pth"):
        with pytest.raises(UsageError, match="a tokenizer.json made of https://.*/beit3.spm with --tokenizer FILE"):
            published_tokenizer(beit, source)
    with pytest.raises(UsageError, match="that they were trained with"):
        published_tokenizer(plait.model_info("clip_nano"), str(tmp_path / "mine.safetensors"))
    assert not (tmp_path / "run").exists()


def test_what_holds_no_words_needs_no_tokenizer(tmp_path):
    assert published_tokenizer(plait.model_info("meta_transformer_b16"), str(tmp_path / "encoder.pth")) is None


def test_a_wrong_tokenizer_is_refused(published, tmp_path):
    path = write_tokenizer(plait.model_info("fnet_base"), tmp_path)
    with pytest.raises(
        UsageError, match="expected 30,522 words, got 32,000; the begin token 101, got 4; the end token"
    ):
        fit(published, tmp_path, tokenizer=str(path))
    assert not (tmp_path / "run").exists()


def test_what_writes_is_refused_a_wrong_tokenizer_too(tmp_path):
    rows = {"photo": [png(i) for i in range(30)], "said": [f"the {w}" for w in (*WORDS, *WORDS)]}
    path = write_tokenizer(plait.model_info("fnet_base"), tmp_path)
    options = dict(task="caption", target="said", system="git_base", pretrained=str(tmp_path / "git.bin"))
    with pytest.raises(UsageError, match="not the tokenizer of git_base's weights: expected 30,522 words, got 32,000"):
        plait.fit(pa.table(rows), out=tmp_path / "run", kinds={"photo": "image"}, tokenizer=str(path), **options)
    os.unlink(path)
    with pytest.raises(
        UsageError, match="tokenizer.json of https://huggingface.co/microsoft/git-base with --tokenizer"
    ):
        plait.fit(pa.table(rows), out=tmp_path / "run", kinds={"photo": "image"}, **options)


def png(seed: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("how", ["beside", "given"])
def test_a_run_reads_published_weights_by_their_own_ids(published, how, tmp_path):
    source = tmp_path / "weights"
    source.mkdir()
    os.link(published / "model.safetensors", source / "model.safetensors")
    path = write_tokenizer(plait.model_info(BERT), source if how == "beside" else tmp_path / "elsewhere")
    run = fit(source, tmp_path, **({} if how == "beside" else {"tokenizer": str(path)}), lr=1e-12)
    slot = run.schema.shape("text")
    assert (slot["vocab"], slot["cls"], slot["sep"], slot["mask"]) == (30522, 101, 102, 103)
    table_of_words = run.model.bound.system.text_embedding.table
    rows = load_file(source / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    torch.testing.assert_close(table_of_words.detach(), rows, rtol=0, atol=1e-6)
    batch = run.rows(pa.table({"text": ["the cat", "a"]})).batch(np.arange(2))
    assert batch["text"].tolist()[0][:5] == [101, 1004, 1001, 102, 0] and batch["keep"]["text"].sum(1).tolist() == [
        4,
        3,
    ]
    again = plait.load(tmp_path / "run")
    assert again.schema.column("text").params["tokenizer"] == run.schema.column("text").params["tokenizer"]


@pytest.mark.parametrize(
    "name", ["bert_toy", "fnet_toy", "clip_toy", "mobileclip_toy", "vilt_toy", "albef_toy", "git_toy"]
)
def test_no_model_reads_what_pads_a_text(name):
    """Batches are padded with 0, whatever the published tokenizer pads with."""
    torch.manual_seed(0)
    model = plait.create_model(name).eval()
    keep = torch.arange(9) < torch.tensor([9, 5])[:, None]
    ids = torch.randint(5, 60, (2, 9)) * keep
    outputs = []
    for pad in (0, 1, 49):
        x = torch.where(keep, ids, pad)
        if model.takes == ("text",):
            outputs.append({"": model(x, keep)})
        else:
            image = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
            outputs.append(model({"image": image, "text": x, "keep": {"text": keep}}))
    for other in outputs[1:]:
        assert all(torch.equal(v, other[k]) for k, v in outputs[0].items())


def test_the_tokenizer_is_fetched_with_the_weights_and_missed_before_anything_is_written(tmp_path):
    """In a process of its own, since the hub's client reads its settings when it is imported."""
    home = tmp_path / "home" / "hub" / "models--google-bert--bert-base-uncased"
    code = """if True:
        import plait, sys
        from plait.runs.vocabulary import published_tokenizer
        print(published_tokenizer(plait.model_info("bert_base_uncased"), True))
    """
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}

    def asked() -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=100)

    failed = asked().stderr
    assert "UsageError: the words of bert_base_uncased are those of its own tokenizer" in failed
    assert "https://huggingface.co/google-bert/bert-base-uncased/resolve/main/tokenizer.json" in failed
    assert "--tokenizer FILE" in failed
    commit = "0" * 40
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    path = write_tokenizer(plait.model_info("bert_base_uncased"), home / "snapshots" / commit)
    assert asked().stdout.strip() == str(path)


def test_every_text_row_says_whose_words_it_knows():
    assert len(TEXT) > 80
    for name in TEXT:
        row = plait.model_info(name).weights
        assert row["tokenizer"] and {"begin", "end"} <= set(row), name
        begin, vocab = row["begin"], build(name).state_dict()
        assert max(v.shape[0] for v in vocab.values() if v.dim() == 2) > max(begin, row["end"]), name
