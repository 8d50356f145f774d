"""DSI against transformers' T5, which it is: names that answer texts."""

from __future__ import annotations

import torch

import plait
from plait.core.catalog import build
from tests.parity.compare import Row, count, count_whole, perturb, relative_error
from tests.parity.t5 import FIRST, peer
from tests.peers import declare_torchvision

SYSTEM, CUTS = "dsi", True
CASES = {
    f"{SYSTEM}_{size}": f"google-t5/t5-{theirs}"
    for size, theirs in {"base": "base", "large": "large", "xl": "3b", "xxl": "11b"}.items()
}
LAYERS = {"base": 12, "large": 2, "xl": 1, "xxl": 1}


@torch.no_grad()
def parity(name: str) -> Row:
    declare_torchvision()
    reference, cut = CASES[name], LAYERS[name.removeprefix("dsi_")]
    depth = FIRST[reference.split("-")[-1]][1]
    parameters = plait.model_info(name).parameters, count_whole(lambda: peer(reference))
    if parameters[0] != parameters[1]:
        return Row(name, f"transformers {reference}", *parameters, float("inf"))
    theirs = perturb(peer(reference, cut))
    ours = build(name, depth=cut).to_empty(device="cpu").eval()
    plait.load_weights(ours, theirs.state_dict(), source="transformers_tied")
    assert count(ours) == count(theirs)
    g = torch.Generator().manual_seed(1)
    read, said = torch.randint(2, 32128, (3, 40), generator=g), torch.randint(2, 32128, (3, 6), generator=g)
    keep = torch.arange(40) < torch.tensor([40, 12, 1])[:, None]
    said[:, 0] = 0
    want = theirs(input_ids=read, attention_mask=keep.long(), decoder_input_ids=said).logits
    got = ours.step(said, ours.prefill({"text": read, "keep": {"text": keep}}))[0]
    told = "" if cut == depth else f", {cut} of {depth} layers"
    return Row(
        name,
        f"transformers {reference}{told}",
        *parameters,
        relative_error(got, want),
        "layers" if told else "output",
    )
