"""VisualBERT: heads and layouts as published, regions that are a set, words that are hidden, and which word goes with
which region, learnt from hidden words alone."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F

import plait
from plait.core.catalog import model_info, systems
from plait.data.schema import Schema
from plait.data.table import Table
from plait.errors import PlaitError
from plait.runs.assemble import choose, recipe
from plait.runs.console import Console
from plait.systems.pairs.visual_bert import concealed
from plait.tasks.registry import TASKS
from tests.contract.examples import example
from tests.parity.compare import perturb
from tests.parity.visual_bert import difference, peer
from tests.peers import declare_torchvision

TINY = dict(
    vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
    max_position_embeddings=16, visual_embedding_dim=12,
)  # fmt: skip
BARE = dict(vision=None, regions=12, guess=False, match=False, answers=0)
PRE = dict(guess=True, match=True)


def ours(**arguments):
    return plait.create_model("visual_bert_toy", **{**BARE, **arguments}).eval()


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("vqa-pre", PRE),
        ("nlvr2-pre", PRE | dict(pair=True)),
        ("vqa", dict(last=True, answers=3129)),
        ("nlvr2", dict(pair=True, answers=2)),
        ("vcr", dict(answers=1)),
    ],
)
def test_every_head_agrees_and_goes_back(name, arguments):
    theirs = peer(f"uclanlp/visualbert-{name}", **TINY)
    source = "transformers_pretraining" if "guess" in arguments else "transformers_heads"
    model = plait.load_weights(ours(**arguments), theirs.state_dict(), source)
    assert difference(model, theirs, 12, 8, pair=arguments.get("pair", False), mask=4) < 1e-5
    back = plait.save_weights(model, source)
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(v, back[k]) for k, v in theirs.state_dict().items())


def test_the_bare_encoder_has_a_layout():
    declare_torchvision()
    from transformers import VisualBertConfig, VisualBertModel

    theirs = perturb(VisualBertModel(VisualBertConfig(**TINY)))
    model = plait.load_weights(ours(), theirs.state_dict(), "transformers")
    assert plait.save_weights(model, "transformers").keys() == theirs.state_dict().keys()


def test_published_files_have_what_nobody_reads_and_no_copies():
    state = dict(peer("uclanlp/visualbert-vqa-pre", **TINY).state_dict())
    state["visual_bert.embeddings.position_ids"] = torch.arange(16)[None]
    del state["cls.predictions.decoder.weight"], state["cls.predictions.decoder.bias"]
    model = plait.load_weights(ours(**PRE), state, "transformers_pretraining")
    assert torch.equal(model.word_head.bias, state["cls.predictions.bias"])
    pooled = {"visual_bert.pooler.dense.weight": torch.zeros(32, 32), "visual_bert.pooler.dense.bias": torch.zeros(32)}
    answers = plait.save_weights(ours(last=True, answers=3), "transformers_heads")
    plait.load_weights(ours(last=True, answers=3), answers | pooled, "transformers_heads")
    with pytest.raises(PlaitError):
        plait.load_weights(ours(answers=3), answers, "transformers_heads")


def test_a_model_of_the_paper_has_110_million_parameters():
    assert model_info("visual_bert_vcr").parameters - 769 == 110_270_976  # all but the head


def batch_of(model, regions=6, rows=3):
    g = torch.Generator().manual_seed(1)
    batch = {eye: torch.randn(rows, regions, 12, generator=g) for eye in model.eyes}
    return batch | {"text": torch.randint(5, 64, (rows, 9), generator=g)}


@torch.no_grad()
def test_regions_are_a_set():
    model, order = ours(answers=7), torch.tensor([3, 0, 5, 1, 4, 2])
    batch = batch_of(model)
    turned = {**batch, "series": batch["series"][:, order]}
    torch.testing.assert_close(model(batch)["answer"], model(turned)["answer"])
    torch.testing.assert_close(model.looks(batch)[..., order], model.looks(turned))
    assert not torch.allclose(model({**batch, "series": batch["series"] + 1})["answer"], model(batch)["answer"])


@torch.no_grad()
@pytest.mark.parametrize("eyes", [dict(vision=None), dict(vision="vit_toy")])
def test_which_of_two_pictures_is_which_matters(eyes):
    model = ours(**eyes, pair=True)
    batch = batch_of(model) if model.vision is None else example(model)
    one, other = model.eyes
    turned = {**batch, one: batch[other], other: batch[one]}
    assert not torch.allclose(model(batch)["fused"], model(turned)["fused"], atol=1e-4)
    gone = {**batch.get("present", {}), other: torch.zeros(3, dtype=torch.bool)}
    alone = [model({**batch, other: x, "present": gone})["fused"] for x in (batch[other], batch[other] * torch.nan)]
    assert torch.equal(*alone) and not torch.allclose(alone[0], model(batch)["fused"], atol=1e-4)


@torch.no_grad()
def test_what_is_not_a_region_is_not_looked_at():
    model = ours(answers=7)
    batch = batch_of(model)
    keep = torch.arange(6).expand(3, 6) < torch.tensor([[6], [4], [1]])
    holed = {**batch, "series": batch["series"].masked_fill(~keep[..., None], torch.nan), "keep": {"series": keep}}
    found = model(holed)["answer"]
    for i, n in enumerate((6, 4, 1)):
        alone = model({"series": batch["series"][i : i + 1, :n], "text": batch["text"][i : i + 1]})["answer"]
        torch.testing.assert_close(found[i : i + 1], alone, rtol=1e-4, atol=1e-5)
    assert not model.looks(holed)[2, ..., 1:].any()
    with torch.enable_grad():
        model(holed)["answer"].sum().backward()
    assert all(p.grad.isfinite().all() for p in model.regions.parameters())


@torch.no_grad()
def test_answers_are_read_before_the_end_of_a_text():
    model = ours(last=True)
    batch = batch_of(model)
    keep = torch.arange(9).expand(3, 9) < torch.tensor([[9], [6], [1]])
    t, _ = model.read({**batch, "keep": {"text": keep}})
    fused = model({**batch, "keep": {"text": keep}})["fused"]
    for i, place in enumerate((7, 4, 0)):
        assert torch.equal(fused[i], t.x[i, place])
    assert model({"series": batch["series"]})["fused"].isfinite().all()


def test_features_of_another_width_are_told():
    with pytest.raises(PlaitError, match=r"got regions \(3, 6, 11\), expected \(B, R, 12\)"):
        ours()({"series": torch.zeros(3, 6, 11), "text": torch.zeros(3, 4, dtype=torch.int64)})
    with pytest.raises(PlaitError, match="guesses no words"):
        ours().guess(batch_of(ours()), {"text": torch.rand(3, 16)})


def test_some_words_are_hidden_and_never_the_first_or_last():
    keep = torch.arange(16).expand(2000, 16) < torch.randint(
        0, 17, (2000, 1), generator=torch.Generator().manual_seed(0)
    )
    hidden = concealed(torch.rand(2000, 16, generator=torch.Generator().manual_seed(1)), keep)
    length = keep.sum(1)
    inner = (length - 2).clamp(min=0)
    assert torch.equal(hidden.sum(1), (0.15 * inner).round().clamp(min=1).minimum(inner).long())
    assert not hidden[:, 0].any() and not (hidden & ~keep).any()
    assert not hidden[torch.arange(2000), (length - 1).clamp(min=0)].any()
    assert hidden[length == 16].any(0)[1:15].all()


@torch.no_grad()
def test_guesses_are_of_what_is_hidden_alone():
    model = ours(guess=True)
    batch = batch_of(model) | {"keep": {"text": torch.arange(9) < torch.tensor([[9], [3], [2]])}}
    luck = {"text": torch.arange(16.0).expand(3, -1)}  # the second place is hidden
    found = model.guess(batch, luck)
    hidden = batch["text"].clone()
    hidden[:, 1] = model.mask
    t, _ = model.read({**batch, "text": hidden})
    costs = F.cross_entropy(model.words(t.x[:2, 1]), batch["text"][:2, 1], reduction="none")
    torch.testing.assert_close(found["costs"]["words"][:2], costs)
    assert found["costs"]["words"][2].isnan() and found["blind"]["words"][2].isnan()  # two words: none between
    torch.testing.assert_close(found["blind"]["words"][:2], torch.full((2,), math.log(64)))
    assert model.guess({"series": batch["series"]}, luck)["costs"]["words"].isnan().all()


CONCEPTS, COLOURS, REGIONS = 8, 6, 5


def planted(rows: int, seed: int) -> tuple[dict, torch.Tensor]:
    """Five regions in any order, each of another thing and of some colour, and a text that says one thing and its
    colour; and which region that is."""
    g = torch.Generator().manual_seed(seed)
    things = torch.rand(rows, CONCEPTS, generator=g).argsort(1)[:, :REGIONS]
    colours = torch.randint(0, COLOURS, (rows, REGIONS), generator=g)
    which = torch.randint(0, REGIONS, (rows,), generator=g)
    x = torch.cat([F.one_hot(things, CONCEPTS), F.one_hot(colours, COLOURS)], 2).float()
    thing, colour = (v[torch.arange(rows), which] for v in (things, colours))
    ids = torch.stack([torch.full_like(thing, 2), 10 + thing, 30 + colour, torch.full_like(thing, 3)], 1)
    return {"series": x, "text": ids}, which


@torch.no_grad()
def grounded(model) -> float:
    """How often the head that does it best in half of the rows looks from a word at its region, in the other half;
    chance is a fifth. The colour is hidden, so that nothing else tells which region is meant."""
    batch, which = planted(400, 10**6)
    batch["text"][:, 2] = model.mask
    most = model.eval().looks(batch)[:, :, :, 1:3].argmax(-1)  # (B, L, H, 2): of both words
    hits = (most == which[:, None, None, None]).float().flatten(1)
    return float(hits[200:, hits[:200].mean(0).argmax()].mean())


def test_hidden_words_teach_which_word_goes_with_which_region():
    model = ours(regions=CONCEPTS + COLOURS, guess=True).train()
    assert grounded(model) < 0.35
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=3e-3)
    for step in range(450):
        luck = {"text": torch.rand(64, 16, generator=torch.Generator().manual_seed(step))}
        loss = model.guess(planted(64, step)[0], luck)["costs"]["words"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert grounded(model) > 0.7
    batch, _ = planted(400, 10**6)
    luck = {"text": torch.tensor([0, 0.5, 0.1, 0] + [0] * 12).expand(400, -1)}  # the colour is hidden
    with torch.no_grad():
        cost = model.guess(batch, luck)["costs"]["words"].mean()
    assert cost < 0.5 * math.log(COLOURS)


def test_tables_of_regions_decide_the_width_of_a_published_size(tmp_path):
    assert {"visual_bert_vqa", "visual_bert_nlvr2"} <= set(plait.list_models("visual_bert_*", takes=["series", "text"]))
    assert not {"visual_bert_vqa"} & set(plait.list_models("visual_bert_*", takes="image"))
    batch, which = planted(240, 0)
    names = ("mug", "cat", "hat", "pen", "car", "cup", "map", "key")
    table = pa.table(
        {
            "seen": [x[: 3 + i % 3].tolist() for i, x in enumerate(batch["series"])],
            "said": [f"the {names[int(i) - 10]} is there" for i in batch["text"][:, 1]],
            "label": [("low", "high")[int(i) % 2] for i in batch["text"][:, 1]],
        }
    )
    schema = Schema.guess(
        Table(table, None, "regions"), inputs=["seen", "said"], target="label", kinds={"said": "text"}
    )
    schema.fit(Table(table, None, "regions"), np.arange(240))
    info = choose("visual_bert_vqa", schema, TASKS["classify"])
    assert recipe(info, schema, TASKS["classify"]).arguments["regions"] == CONCEPTS + COLOURS
    found = systems()["visual_bert"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(found.sizes, "pocket", found.sizes["toy"] | dict(vision=None, regions=7))
        patch.setitem(found.size_takes, "pocket", ("series", "text"))
        options = dict(
            inputs=["seen", "said"],
            target="label",
            kinds={"said": "text"},
            epochs=4,
            lr=5e-3,
            precision="fp32",
            folds=1,
        )
        run = plait.fit(
            table, system="visual_bert_pocket", out=tmp_path / "run", console=Console(quiet=True), **options
        )
        (score, *_), answers = next(iter(run.assessments.values())).scores, run.predict(table)
        assert score.value > 0.8 and len(answers) == 240
