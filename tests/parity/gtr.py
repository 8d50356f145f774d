"""GTR against transformers' T5EncoderModel under sentence-transformers' own pooling, layer and norm, on padded texts in
a batch and alone.

What the published repositories say (config.json, 1_Pooling, 2_Dense, modules.json): the encoders of T5 1.0.
"""

from __future__ import annotations

from functools import partial

import torch

import plait
from plait.core.catalog import systems
from tests.parity.compare import Row, count, count_whole, perturb, relative_error
from tests.parity.t5 import FIRST
from tests.peers import declare_torchvision

SYSTEM, CUTS = "gtr", True
CASES = {f"{SYSTEM}_{size}": row["references"]["transformers"] for size, row in systems()[SYSTEM].weights.items()}
LIMIT = 4e8  # parameters of a model that is compared whole
TOWERS = {"base": "base", "large": "large", "xl": "3b", "xxl": "11b"}


@torch.no_grad()
def parity(name: str) -> Row:
    declare_torchvision()
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling
    from transformers import T5Config, T5EncoderModel

    info, reference = plait.model_info(name), CASES[name]
    width, layers, heads, each, hidden = FIRST[TOWERS[reference.rsplit("-", 1)[1]]]
    made = T5Config(vocab_size=32128, d_model=width, d_kv=each, d_ff=hidden, num_layers=layers, num_heads=heads)
    dense = Dense(width, 768, bias=False, activation_function=torch.nn.Identity())
    last = [Pooling(width, pooling_mode="mean"), dense, Normalize()]
    counted = count_whole(partial(T5EncoderModel, made)) + count(dense)
    if info.parameters != counted:
        return Row(name, f"transformers {reference}", info.parameters, counted, float("inf"))
    cut = {}
    if counted > LIMIT:
        cut = dict(depth=1)
        made.num_layers = 1
    theirs, last = perturb(T5EncoderModel(made)), [perturb(module) for module in last]
    ours = plait.create_model(name, **cut).eval()
    own = {f"2_Dense.{key}": t for key, t in last[1].state_dict().items()}
    plait.load_weights(ours, theirs.state_dict() | own, source=info.weights["source"])
    assert count(ours) == count(theirs) + count(last[1])
    assert {m.eps for m in ours.modules() if isinstance(m, torch.nn.RMSNorm)} == {made.layer_norm_epsilon}
    ids = torch.randint(2, 32128, (3, 150), generator=torch.Generator().manual_seed(1))  # long: far distances show
    keep = torch.arange(150) < torch.tensor([150, 60, 7])[:, None]
    x = {"token_embeddings": theirs(input_ids=ids, attention_mask=keep.long()).last_hidden_state}
    x["attention_mask"] = keep.long()
    for module in last:
        x = module(x)
    want, got = x["sentence_embedding"], ours.embed({"text": ids, "keep": {"text": keep}})["text"]
    alone = torch.cat([ours(row[None, :n]) for row, n in zip(ids, keep.sum(1))])
    told = f", {made.num_layers} of {layers} layers" if cut else ""
    error = max(relative_error(got, want), relative_error(alone, want))
    return Row(name, f"transformers {reference}{told}", info.parameters, counted, error, "layers" if cut else "output")
