"""UniXcoder against transformers' RobertaModel under the masks of the public code: both sides of what is read, the past
of what is written, and both sides of a text before the past of the one that answers it.

Which ids call the other two modes is not known, and any will do for the masks.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

import plait
from plait.core.catalog import build, systems
from plait.systems.text.unixcoder import WRITE
from tests.parity.compare import Row, count, count_whole, perturb, relative_error
from tests.parity.norms import epsilons
from tests.parity.roberta import texts
from tests.peers import declare_torchvision

SYSTEM = "unixcoder"
CASES = {f"{SYSTEM}_{size}": row["references"]["transformers"] for size, row in systems()[SYSTEM].weights.items()}
MODES = (6, 5, 4)


@torch.no_grad()
def parity(name: str) -> Row:
    declare_torchvision()
    from transformers import RobertaConfig, RobertaModel

    made = RobertaConfig(
        vocab_size=51416, max_position_embeddings=1026, type_vocab_size=10, layer_norm_eps=1e-5, pad_token_id=1
    )
    make, info = partial(RobertaModel, made, add_pooling_layer=False), plait.model_info(name)
    parameters = info.parameters, count_whole(make)
    if parameters[0] != parameters[1]:
        return Row(name, f"transformers {CASES[name]}", *parameters, float("inf"))
    theirs = perturb(make())
    ours = build(name, modes=(*info.arguments["modes"], *MODES[1:])).to_empty(device="cpu").eval()
    ours.reset()
    plait.load_weights(ours, theirs.state_dict(), source=info.weights["source"])
    assert count(ours) == count(theirs) and epsilons(ours) == epsilons(theirs)

    def public(ids, allow):  # (B, N), (B, N, N)
        places = torch.where(ids == 1, 1, 1 + (ids != 1).cumsum(1))
        bias = torch.where(allow, 0.0, torch.finfo(torch.float32).min)[:, None]
        return theirs(ids, attention_mask=bias, position_ids=places).last_hidden_state

    def moded(i):  # begin, mode, end, and the text without its own beginning
        first = torch.tensor([0, MODES[i], 2]).expand(3, 3)
        return torch.cat([first, ids[:, 1:]], 1)

    ids, keep = texts(51416, 1)
    ids[:, 0] = 0
    errors, real = [], moded(0) != 1
    pairs = real[:, None] & real[:, :, None]
    read = public(moded(0), pairs)
    want = F.normalize((read * real[..., None]).sum(1) / real.sum(1, keepdim=True), dim=-1)
    errors.append(relative_error(ours.embed({"text": ids, "keep": {"text": keep}})["text"], want))
    past = torch.ones(real.shape[1], real.shape[1], dtype=torch.bool).tril()
    errors.append(relative_error(ours.tokens(ids, keep, WRITE).x[real], public(moded(1), pairs & past)[real]))
    row, n = ids[:1, :30], 32  # a whole text and what is written after it, at once and word by word
    said = torch.randint(3, 51416, (1, 12), generator=torch.Generator().manual_seed(2))
    both = torch.cat([moded(2)[:1, :n], said], 1)
    allow = torch.ones(44, 44, dtype=torch.bool).tril()
    allow[:n, :n] = True
    want = F.linear(public(both, allow[None])[:, n:], theirs.embeddings.word_embeddings.weight)
    cache = ours.prefill({"text": row})
    errors.append(relative_error(ours.step(said, cache)[0], want))
    got, cache = ours.step(said[:, :10], cache)
    for i in (10, 11):
        got, cache = ours.step(said[:, i : i + 1], cache)
        errors.append(relative_error(got[:, 0], want[:, i]))
    return Row(name, f"transformers {CASES[name]}", *parameters, max(errors))
