"""BERT against transformers: the encoder and the pooler, and both heads of pre-training, on padded texts of two
segments."""

from __future__ import annotations

import re
from functools import partial

import torch

import plait
from plait.core.catalog import systems
from tests.parity.compare import Row, count, count_whole, perturb, relative_error
from tests.parity.norms import epsilons
from tests.peers import declare_torchvision

SYSTEM = "bert"
CASES = {f"{SYSTEM}_{size}": row["references"]["transformers"] for size, row in systems()[SYSTEM].weights.items()}
LIMIT = 1e9  # parameters of a model that is compared whole
VOCABULARIES = {
    "multilingual-uncased": 105879,
    "multilingual-cased": 119547,
    "Multilingual-MiniLM": 250037,
    "chinese": 21128,
    "uncased": 30522,
    "cased": 28996,
}


def config(reference: str):
    """What the published config.json of `reference` says."""
    from transformers import BertConfig

    vocab = next(size for part, size in VOCABULARIES.items() if part in reference)
    if mini := re.search(r"MiniLM-L(\d+)-H(\d+)", reference):
        (depth, width), heads = map(int, mini.groups()), 12
    elif small := re.search(r"L-(\d+)_H-(\d+)_A-(\d+)", reference):
        depth, width, heads = map(int, small.groups())
    else:
        depth, width, heads = (24, 1024, 16) if "large" in reference else (12, 768, 12)
    return BertConfig(
        vocab_size=vocab,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
    )


@torch.no_grad()
def parity(name: str) -> Row:
    declare_torchvision()
    from transformers import BertForPreTraining, BertModel

    made = config(CASES[name])
    counts = plait.model_info(name).parameters, count_whole(partial(BertModel, made))
    if counts[0] != counts[1]:
        return Row(name, f"transformers {CASES[name]}", *counts, float("inf"))
    depth, said = made.num_hidden_layers, ""
    if counts[1] > LIMIT:
        made.num_hidden_layers, said = 2, f", 2 of {depth} layers"
    cut = dict(depth=made.num_hidden_layers)
    whole = perturb(BertForPreTraining(made))
    theirs = whole.bert
    g = torch.Generator().manual_seed(1)
    ids, kinds = (
        torch.randint(1, theirs.config.vocab_size, (3, 40), generator=g),
        torch.randint(0, 2, (3, 40), generator=g),
    )
    keep = torch.arange(40) < torch.tensor([40, 25, 7])[:, None]
    inputs = dict(input_ids=ids, token_type_ids=kinds, attention_mask=keep.long())

    ours = plait.load_weights(plait.create_model(name, **cut).eval(), theirs.state_dict(), source="transformers")
    t, expected = ours.tokens(ids, keep, kinds), theirs(**inputs)
    errors = [
        relative_error(t.x[keep], expected.last_hidden_state[keep]),
        relative_error(ours.pool(t), expected.pooler_output),
    ]
    assert count(ours) == count(theirs)

    ours = plait.create_model(name, num_classes=2, mlm=True, **cut).eval()
    plait.load_weights(ours, whole.state_dict(), source="transformers_pretraining")
    t, expected = ours.tokens(ids, keep, kinds), whole(**inputs)
    errors += [relative_error(ours.words(t)[keep], expected.prediction_logits[keep])]
    errors += [relative_error(ours.head(ours.pool(t)), expected.seq_relationship_logits)]
    assert count(ours) == count(whole) and epsilons(ours) == epsilons(whole)
    ran = "layers" if said else "output"
    return Row(name, f"transformers {CASES[name]}{said}", *counts, max(errors), ran)
