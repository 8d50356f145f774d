"""Tries one after another: what came before is read, what comes later is not, and gaps between tries are nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import plait

WIDE = {"states": 3, "actions": 2, "returns": 1, "rewards": 1, "done": 1}
STEPS = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3])  # a try of five steps and one of four


@pytest.fixture(scope="module")
def model():
    return plait.create_model("agentic_transformer_toy").eval()


@pytest.fixture
def tries():
    g = torch.Generator().manual_seed(0)
    batch = {name: torch.randn(2, 9, c, generator=g) for name, c in WIDE.items()}
    return batch | {"steps": STEPS.expand(2, -1), "keep": {n: torch.ones(2, 9, dtype=torch.bool) for n in WIDE}}


@torch.no_grad()
@pytest.mark.parametrize("what", WIDE)
def test_a_later_try_reads_all_of_an_earlier_one(model, tries, what):
    before = model.act(tries)["actions"]
    changed = tries[what].clone()
    changed[:, 3] += 1.0
    off = (model.act(tries | {what: changed})["actions"] - before).abs().amax((0, 2))
    assert float(off[:3].max()) == 0 and float(off[5:].min()) > 1e-5
    assert (float(off[3]) > 0) == (what in ("states", "returns"))  # the rest of a step follows what is done in it


@torch.no_grad()
def test_what_pads_an_earlier_try_is_nothing(model, tries):
    def spread(v: torch.Tensor) -> torch.Tensor:
        shape = (0, 0) * (v.dim() - 2)
        return torch.cat([F.pad(v[:, :5], (*shape, 0, 3), value=7 * (v.dtype == torch.float32)), v[:, 5:]], 1)

    wide = {n: spread(v) for n, v in tries.items() if n != "keep"}
    wide["keep"] = {n: spread(k) for n, k in tries["keep"].items()}
    torch.testing.assert_close(
        model.act(wide)["actions"][:, 8:], model.act(tries)["actions"][:, 5:], atol=1e-6, rtol=1e-5
    )


@torch.no_grad()
def test_tries_may_be_as_many_and_as_long_as_was_said(model):
    most = model.length * model.tries
    batch = {name: torch.zeros(1, most + 1, c) for name, c in WIDE.items()}
    steps = (torch.arange(most + 1) % model.length)[None]
    with pytest.raises(ValueError, match=f"at most {most}"):
        model.act(batch | {"steps": steps})
    fits = {name: v[:, :most] for name, v in batch.items()}
    assert model.act(fits | {"steps": steps[:, :most]})["actions"].shape == (1, most, 2)
