"""MPNet against transformers: the encoder and the masked-word head, on padded texts that are longer than the distances
which have a number each."""

from __future__ import annotations

import torch

import plait
from plait.core.catalog import build, systems
from tests.parity.compare import Row, count, perturb, relative_error
from tests.parity.norms import epsilons
from tests.peers import declare_torchvision

SYSTEM = "mpnet"
CASES = {f"{SYSTEM}_{size}": row["references"]["transformers"] for size, row in systems()[SYSTEM].weights.items()}


def config(**more):
    """What the published config.json says."""
    from transformers import MPNetConfig

    usual = dict(vocab_size=30527, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, pad_token_id=1)
    usual |= dict(intermediate_size=3072, max_position_embeddings=514, layer_norm_eps=1e-5)
    return MPNetConfig(**usual | dict(relative_attention_num_buckets=32) | more)


@torch.no_grad()
def parity(name: str) -> Row:
    declare_torchvision()
    from transformers import MPNetForMaskedLM

    theirs = perturb(MPNetForMaskedLM(config()))
    theirs.mpnet.encoder.relative_attention_bias.weight.mul_(20)  # that they matter
    ours = build(name, mlm=True).to_empty(device="cpu").eval()
    plait.load_weights(ours, theirs.state_dict(), source="transformers_mlm")
    assert count(ours) == count(theirs) and epsilons(ours) == epsilons(theirs)
    ids = torch.randint(2, 30527, (2, 150), generator=torch.Generator().manual_seed(1))
    keep = torch.arange(150) < torch.tensor([150, 60])[:, None]
    ids = torch.where(keep, ids, 1)
    t = ours.tokens(ids, keep)
    expected = theirs(input_ids=ids, attention_mask=keep.long(), output_hidden_states=True)
    errors = [relative_error(t.x[keep], expected.hidden_states[-1][keep])]
    errors += [relative_error(ours.words(t)[keep], expected.logits[keep])]
    bare = plait.model_info(name).parameters
    return Row(name, f"transformers {CASES[name]}", bare, count(theirs.mpnet), max(errors))
