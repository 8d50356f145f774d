"""MobileCLIP against open_clip: both vectors, before they are normed, texts with and without empty places; and
folded."""

from __future__ import annotations

import torch

import plait
from plait.core.catalog import systems
from plait.core.surgery import fold_norms
from tests.parity.compare import Row, count, perturb, relative_error
from tests.parity.norms import epsilons
from tests.parity.pyramids import batch_epsilons
from tests.peers import declare_torchvision

SYSTEM = "mobileclip"
CASES = {f"{SYSTEM}_{size}": row["references"]["open_clip"] for size, row in systems()[SYSTEM].weights.items()}
END = 49407  # the id that ends a text, larger than any other


@torch.no_grad()
def parity(name: str) -> Row:
    """The worst of the picture's and the text's vector, and of both again when the norms are folded."""
    declare_torchvision()
    import open_clip

    theirs = perturb(open_clip.create_model(CASES[name]))
    ours = plait.load_weights(plait.create_model(name).eval(), theirs.state_dict(), source="open_clip")
    assert epsilons(ours) == epsilons(theirs) and batch_epsilons(ours) == batch_epsilons(theirs)
    assert ours.blanks["image"][0] == (3, *theirs.visual.image_size)
    g = torch.Generator().manual_seed(1)
    x, ids = torch.randn(2, 3, *theirs.visual.image_size, generator=g), torch.randint(1, END, (2, 77), generator=g)
    ids[0, 76] = ids[1, 30] = END
    ids[1, 31:] = 0
    keep, image, text = ids != 0, theirs.encode_image(x), theirs.encode_text(ids)
    parameters, error = count(ours), 0.0
    for _ in range(2):
        error = max(
            error, relative_error(ours.towers["image"](x), image), relative_error(ours.towers["text"](ids, keep), text)
        )
        ours = fold_norms(ours)
    return Row(name, f"open_clip {CASES[name]}", parameters, count(theirs), error)
