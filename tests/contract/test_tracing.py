"""torch.jit's tracing, which many exporters and profilers still begin with: sizes are tensors there."""

from __future__ import annotations

import pytest
import torch

from tests.contract.examples import SYSTEMS, example, toy


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("system", [pytest.param(s, id=s.name) for s in SYSTEMS if s.takes == ("image",)])
def test_a_trace_gives_the_same(system):
    if "backbone" not in system.roles:
        pytest.skip("gives more than a tensor")
    model = toy(system).eval()
    x, other = (example(model, rows=2, seed=seed)["image"] for seed in (0, 1))
    traced = torch.jit.trace(model, (x,), check_trace=False)
    torch.testing.assert_close(traced(other), model(other), rtol=1e-5, atol=1e-5)
