"""FiE with one passage and no shared tokens against transformers' BertForQuestionAnswering, which it then is: how well
an answer begins and ends at each word of a passage, whose question is in front of it."""

from __future__ import annotations

import torch

import plait
from tests.parity.compare import Row, count, perturb, relative_error
from tests.parity.norms import epsilons
from tests.peers import declare_torchvision

SYSTEM = "fie"
BERT = {"base": (768, 12, 12), "large": (1024, 24, 16)}  # BERT's own, as its config.json says
CASES = {f"{SYSTEM}_{size}": "BertForQuestionAnswering" for size in BERT}


@torch.no_grad()
def parity(name: str) -> Row:
    declare_torchvision()
    from transformers import BertConfig, BertForQuestionAnswering

    width, depth, heads = BERT[name.removeprefix(f"{SYSTEM}_")]
    config = BertConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=4 * width
    )
    theirs = perturb(BertForQuestionAnswering(config))
    ours = plait.load_weights(plait.create_model(name, shared=0).eval(), theirs.state_dict(), source="transformers")
    assert epsilons(ours) == epsilons(theirs)
    g, n, m = torch.Generator().manual_seed(1), 9, 31
    question, passage = (torch.randint(5, 30522, (2, k), generator=g) for k in (n, m))
    keeps = torch.arange(m) < torch.tensor([m, m - 8])[:, None]
    asked = torch.ones_like(question, dtype=torch.bool)
    mask = torch.cat([asked, keeps], 1).long()
    kinds = (torch.arange(n + m) >= n).long().expand(2, -1)
    want = theirs(input_ids=torch.cat([question, passage], 1), attention_mask=mask, token_type_ids=kinds)
    got = ours.places(ours.tokens(question, asked, passage[:, None], keeps[:, None]), 1, m)[:, 0]
    pairs = ((got[..., 0], want.start_logits), (got[..., 1], want.end_logits))
    error = max(relative_error(a[keeps], b[:, n:][keeps]) for a, b in pairs)
    return Row(name, CASES[name], count(ours), count(theirs), error, "output")
