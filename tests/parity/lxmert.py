"""LXMERT against transformers, on padded texts of two segments and regions some of which are not there: both streams,
the pooled vector, every head of its class, and of the pre-trained one the sum of its five losses."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

import plait
from plait.core.catalog import systems
from plait.core.tokens import Tokens
from plait.parts.objectives.two_streams import WEIGHT, Asked, losses
from tests.parity.compare import Row, count, count_whole, perturb, relative_error
from tests.parity.norms import epsilons
from tests.peers import declare_torchvision

SYSTEM = "lxmert"
CASES = {f"{SYSTEM}_{size}": row["references"]["transformers"] for size, row in systems()[SYSTEM].weights.items()}
LIMIT = 1e9  # parameters of a model that is compared whole
ANSWERS = {"vqa": 3129, "gqa": 1842}
HIDDEN, PLACES = 103, torch.tensor([5, 2, 3])  # which words are hidden
BARE = dict(guess=False, objects=0, attributes=0, answers=0)


def config(reference: str):
    """What the published config.json of `reference` says."""
    from transformers import LxmertConfig

    said = reference.split("lxmert-")[1].split("-")[0]
    return LxmertConfig(num_qa_labels=ANSWERS.get(said, 9500), visual_loss_normalizer=WEIGHT)


def inputs(vocab: int) -> tuple[dict, Tensor]:
    """A batch as ours reads it, and which segment each word is of."""
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(200, vocab, (3, 14), generator=g)
    ids[torch.arange(3), PLACES] = HIDDEN
    keep = torch.arange(14) < torch.tensor([14, 9, 5])[:, None]
    there = torch.arange(10) < torch.tensor([10, 4, 7])[:, None]
    corners = torch.rand(3, 10, 2, 2, generator=g).sort(2).values.flatten(2)
    batch = {"text": ids, "regions": torch.randn(3, 10, 2048, generator=g), "boxes": corners}
    return batch | {"keep": {"text": keep, "regions": there}}, torch.randint(0, 2, ids.shape, generator=g)


def theirs_of(batch: dict, kinds: Tensor) -> dict:
    """The same as theirs reads it."""
    keep = batch["keep"]
    return dict(
        input_ids=batch["text"], token_type_ids=kinds, attention_mask=keep["text"].long(),
        visual_feats=batch["regions"], visual_pos=batch["boxes"], visual_attention_mask=keep["regions"].long(),
    )  # fmt: skip


def streams(ours: nn.Module, theirs: nn.Module, batch: dict, kinds: Tensor) -> tuple[list[float], Tokens, Tokens]:
    """The errors of what the encoder says, and what it says."""
    words, regions = ours.meet(*ours.open(batch), kinds)
    expected, keep = theirs(**theirs_of(batch, kinds)), batch["keep"]
    pairs = [
        (words.x[keep["text"]], expected.language_output[keep["text"]]),
        (regions.x[keep["regions"]], expected.vision_output[keep["regions"]]),
        (ours.pool(words), expected.pooled_output),
    ]
    return [relative_error(*pair) for pair in pairs], words, regions


def asked_of(batch: dict, whole: nn.Module) -> tuple[Asked, dict]:
    """What both are asked, as ours is and as theirs."""
    g, made = torch.Generator().manual_seed(2), whole.config
    words = batch["text"].masked_fill(torch.rand(batch["text"].shape, generator=g) < 0.7, -100)
    hidden, sure = torch.rand(3, 10, generator=g) < 0.5, torch.rand(3, 10, generator=g)
    objects, attributes = (
        torch.randint(k, (3, 10), generator=g) for k in (made.num_object_labels, made.num_attr_labels)
    )
    features, answers = batch["regions"] + 1, torch.randint(made.num_qa_labels, (3,), generator=g)
    match = torch.tensor([1, 0, 1])
    regions = {
        "obj": (objects, hidden * sure), "attr": (attributes, hidden * sure), "feat": (features, hidden.float())
    }  # fmt: skip
    theirs = dict(labels=words, matched_label=match, obj_labels=regions, ans=answers)
    return Asked(words, match, hidden, features, objects, attributes, sure, answers), theirs


@torch.no_grad()
def parity(name: str) -> Row:
    declare_torchvision()
    from transformers import LxmertForPreTraining, LxmertForQuestionAnswering

    info, made = plait.model_info(name), config(CASES[name])
    trains = info.weights["source"] == "transformers_pretraining"
    kind = LxmertForPreTraining if trains else LxmertForQuestionAnswering
    counts = info.parameters, count_whole(partial(kind, made))
    if counts[0] != counts[1]:
        return Row(name, f"transformers {CASES[name]}", *counts, float("inf"))
    cut, said = {}, ""
    if counts[1] > LIMIT:
        made.l_layers = made.r_layers = made.x_layers = 1
        cut, said = dict(depths=(1, 1, 1)), ", 3 of 19 layers"
    whole = perturb(kind(made))
    ours = plait.create_model(name, **cut).eval()
    plait.load_weights(ours, whole.state_dict(), source=info.weights["source"])
    assert epsilons(ours) == epsilons(whole) and count(ours) == count(whole)
    batch, kinds = inputs(made.vocab_size)
    errors, words, regions = streams(ours, whole.lxmert, batch, kinds)
    expected, out = whole(**theirs_of(batch, kinds)), ours(batch)
    plain = whole(**theirs_of(batch, torch.zeros_like(kinds)))
    errors += [
        relative_error(ours.answer(ours.pool(words)), expected.question_answering_score),
        relative_error(out["answer"], plain.question_answering_score),
    ]
    if trains:
        keep, rows = batch["keep"]["text"], torch.arange(3)
        errors += [
            relative_error(ours.words(words.x[keep]), expected.prediction_logits[keep]),
            relative_error(out["words"], plain.prediction_logits[rows, PLACES]),
            relative_error(ours.match(ours.pool(words)), expected.cross_relationship_score),
            relative_error(out["match"], plain.cross_relationship_score),
        ]
        seen = whole.lxmert(**theirs_of(batch, kinds)).vision_output
        for ours_of, theirs_say in zip(("objects", "attributes", "features"), ("obj", "attr", "feat")):
            errors += [relative_error(ours.regions(seen)[ours_of], whole.obj_predict_head(seen)[theirs_say])]
        errors += [loss_error(ours, whole, batch, kinds)]
        if not said:  # the encoder alone
            bare = plait.create_model(name, **BARE).eval()
            plait.load_weights(bare, whole.lxmert.state_dict(), source="transformers")
            assert count(bare) == count(whole.lxmert)
            errors += streams(bare, whole.lxmert, batch, kinds)[0]
    return Row(name, f"transformers {CASES[name]}{said}", *counts, max(errors), "layers" if said else "output")


def loss_error(ours: nn.Module, whole: nn.Module, batch: dict, kinds: Tensor) -> float:
    """Of the sum of all losses, where all regions are there: theirs counts those that are not."""
    batch = batch | {"keep": batch["keep"] | {"regions": torch.ones(3, 10, dtype=torch.bool)}}
    asked, labels = asked_of(batch, whole)
    found = losses(ours, *ours.meet(*ours.open(batch), kinds), asked)
    assert len(found) == 6
    total, expected = sum(found.values()), whole(**theirs_of(batch, kinds), **labels).loss
    return float((total - expected).abs() / expected.abs())
