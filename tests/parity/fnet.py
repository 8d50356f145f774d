"""FNet against transformers, on texts of two segments; a padded row against the same row alone."""

from __future__ import annotations

import torch

import plait
from plait.core.catalog import systems
from tests.parity.compare import Row, count, perturb, relative_error
from tests.parity.norms import epsilons
from tests.peers import declare_torchvision

SYSTEM = "fnet"
CASES = {f"{SYSTEM}_{size}": row["references"]["transformers"] for size, row in systems()[SYSTEM].weights.items()}
SHAPES = {"fnet_base": (768, 12), "fnet_large": (1024, 24)}  # width and layers


@torch.no_grad()
def parity(name: str) -> Row:
    declare_torchvision()
    from transformers import FNetConfig, FNetModel

    width, depth = SHAPES[name]
    config = FNetConfig(hidden_size=width, num_hidden_layers=depth, intermediate_size=4 * width)
    theirs = perturb(FNetModel(config))
    ours = plait.load_weights(plait.create_model(name).eval(), theirs.state_dict(), source="transformers")
    assert epsilons(ours) == epsilons(theirs)
    g = torch.Generator().manual_seed(1)
    ids, kinds = torch.randint(4, 32000, (2, 41), generator=g), torch.randint(0, 4, (2, 41), generator=g)
    keep, errors = torch.arange(41) < torch.tensor([41, 26])[:, None], []
    padded = ours.tokens(ids, keep, kinds)
    for row, n in enumerate(keep.sum(1).tolist()):  # transformers has no mask
        expected = theirs(ids[row : row + 1, :n], token_type_ids=kinds[row : row + 1, :n])
        t = ours.tokens(ids[row : row + 1, :n], None, kinds[row : row + 1, :n])
        errors += [relative_error(x, expected.last_hidden_state) for x in (t.x, padded.x[row : row + 1, :n])]
        errors += [relative_error(ours.pool(t), expected.pooler_output)]
    return Row(name, f"transformers {CASES[name]}", count(ours), count(theirs), max(errors))
