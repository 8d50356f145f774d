"""T5 against transformers: logits of texts that answer padded ones, at once and word by word."""

from __future__ import annotations

from functools import partial

import torch

import plait
from plait.core.catalog import build, systems
from tests.parity.compare import Row, count, count_whole, perturb, relative_error
from tests.peers import declare_torchvision

SYSTEM, CUTS = "t5", True
CASES = {f"{SYSTEM}_{size}": row["references"]["transformers"] for size, row in systems()[SYSTEM].weights.items()}
LIMIT = 4e8  # parameters of a model that is compared whole
FIRST = {
    "small": (512, 6, 8, 64, 2048), "base": (768, 12, 12, 64, 3072), "large": (1024, 24, 16, 64, 4096),
    "3b": (1024, 24, 32, 128, 16384), "11b": (1024, 24, 128, 128, 65536),
}  # fmt: skip
LATER = {
    "small": (512, 8, 6, 64, 1024), "base": (768, 12, 12, 64, 2048), "large": (1024, 24, 16, 64, 2816),
    "xl": (2048, 24, 32, 64, 5120), "xxl": (4096, 24, 64, 64, 10240),
}  # fmt: skip


def peer(reference: str, depth: int | None = None) -> torch.nn.Module:
    """transformers' model of this name, with `depth` layers on each side."""
    from transformers import T5Config, T5ForConditionalGeneration

    first = reference.startswith("google-t5")
    width, whole, heads, each, hidden = (FIRST if first else LATER)[reference.split("-")[-1]]
    made = T5Config(
        vocab_size=32128, d_model=width, d_kv=each, d_ff=hidden, num_layers=depth or whole, num_heads=heads,
        feed_forward_proj="relu" if first else "gated-gelu", tie_word_embeddings=first,
    )  # fmt: skip
    theirs = T5ForConditionalGeneration(made)
    if not first:  # this version of transformers ties what the files hold apart
        theirs.lm_head.weight = torch.nn.Parameter(0.05 * torch.randn(32128, width))
    return theirs


@torch.no_grad()
def parity(name: str) -> Row:
    declare_torchvision()
    reference = CASES[name]
    parameters = plait.model_info(name).parameters, count_whole(partial(peer, reference))
    if parameters[0] != parameters[1]:
        return Row(name, f"transformers {reference}", *parameters, float("inf"))
    width, depth, _, _, hidden = (FIRST if reference.startswith("google-t5") else LATER)[reference.split("-")[-1]]
    cut = depth if parameters[0] < LIMIT else 2 if width < 4096 and hidden < 10000 else 1
    theirs = perturb(peer(reference, cut))
    ours = build(name, depth=cut).to_empty(device="cpu").eval()
    plait.load_weights(ours, theirs.state_dict(), source=plait.model_info(name).weights["source"])
    assert count(ours) == count(theirs)
    g = torch.Generator().manual_seed(1)
    read, said = (torch.randint(2, 32128, (2, n), generator=g) for n in (150, 140))
    keep = torch.arange(150) < torch.tensor([150, 60])[:, None]
    said[:, 0] = 0
    want = theirs(input_ids=read, attention_mask=keep.long(), decoder_input_ids=said).logits
    cache = ours.prefill({"text": read, "keep": {"text": keep}})
    errors = [relative_error(ours.step(said, cache)[0], want)]
    got, cache = ours.step(said[:, :137], cache)
    for i in range(137, 140):
        got, cache = ours.step(said[:, i : i + 1], cache)
        errors.append(relative_error(got[:, 0], want[:, i]))
    told = "" if cut == depth else f", {cut} of {depth} layers"
    ran = "layers" if told else "output"
    return Row(name, f"transformers {reference}{told}", *parameters, max(errors), ran)
