"""ENDX: sides that are read alone learn the geometry of sides that were read together."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import plait
from plait.parts.objectives.contrastive import contrastive
from plait.systems.text.endx_gam import apart, objective
from tests.parity.compare import perturb
from tests.systems.test_dual_cross_encoder import SLOTS, texts


def units(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def batch(rows: int = 6) -> dict:
    (q, keep), (text, keeps) = texts(rows, 5, 4), texts(rows, 8, 7, seed=1)
    there = {"text_0": torch.arange(rows) != 1, "text_1": torch.ones(rows, dtype=torch.bool)}
    return {"text_0": q, "text_1": text, "keep": {"text_0": keep, "text_1": keeps}, "present": there}


def test_geometries_agree_exactly_where_all_cosines_do():
    x = units(7, 12)
    turn = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(1)))[0]
    assert apart(x, x).item() == 0 and apart(x, x @ turn).item() == pytest.approx(0, abs=1e-12)
    assert apart(x @ turn, F.pad(x, (0, 3))).item() == pytest.approx(0, abs=1e-12)  # of another width
    other = x.clone()
    other[3] = units(1, 12, 5)[0]
    want = ((x @ x.mT - other @ other.mT) ** 2).sum() / 49
    assert want > 1e-3 and apart(x, other).item() == pytest.approx(want.item(), rel=1e-5)


@torch.no_grad()
def test_each_side_read_together_knows_the_other_and_alone_it_does_not():
    model = perturb(plait.create_model("endx_gam_toy", slots=SLOTS))
    one, two = batch(), batch()
    two["text_1"] = two["text_1"].roll(2, 0)
    two["keep"]["text_1"] = two["keep"]["text_1"].roll(2, 0)
    given = [[b[n] if i == 0 else b["keep"][n] for n in ("text_0", "text_1") for i in (0, 1)] for b in (one, two)]
    a, b = model.crossed(*given[0])[0], model.crossed(*given[1])[0]
    assert not torch.allclose(a, b, atol=1e-3)
    torch.testing.assert_close(model.embed(one)["text_0"], model.embed(two)["text_0"])
    wide = model.crossed(F.pad(given[0][0], (0, 2), value=9), F.pad(given[0][1], (0, 2)), *given[0][2:])
    torch.testing.assert_close(wide[0], a, rtol=1e-5, atol=1e-5)


def test_the_geometry_teaches_sides_alone_and_not_what_read_both():
    model = plait.create_model("endx_gam_toy", slots=SLOTS, align=2.0).eval()  # without dropout
    given, g = batch(), torch.Generator()
    losses = objective(model, given, None, g)
    whole = given["present"]["text_0"]
    sides = [model(given[n], given["keep"][n])[whole] for n in ("text_0", "text_1")]
    crossed = model.crossed(*(x[whole] for n in ("text_0", "text_1") for x in (given[n], given["keep"][n])))
    want = 2 * apart(torch.cat(sides), torch.cat(crossed).detach())
    torch.testing.assert_close(losses["geometry"], want)
    torch.testing.assert_close(losses["match"], contrastive(*sides, model.logit_scale)["contrastive"])
    torch.testing.assert_close(losses["crossed"], contrastive(*crossed, model.logit_scale)["contrastive"])
    (grad,) = torch.autograd.grad(losses["geometry"], [model.tower.text_embedding.table], retain_graph=True)
    (expected,) = torch.autograd.grad(want, [model.tower.text_embedding.table])
    torch.testing.assert_close(grad, expected)
