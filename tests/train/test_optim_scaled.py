"""ScaledAdam against the numbers that icefall's gave (egs/librispeech/ASR/zipformer/optim.py), step by step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from plait.train.optim_scaled import ScaledAdam

NUMBERS = json.loads(Path(__file__).with_name("scaled_adam.json").read_text(encoding="utf-8"))
NAMES = {"clipping_scale": "clipping", "clipping_update_period": "window"}


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def start() -> list[torch.nn.Parameter]:
    """An ordinary matrix, a vector near nothing, a single number, a matrix near the largest size, and another."""
    sizes = (
        noise(3, 4, seed=1) * 0.5,
        noise(5, seed=2) * 1e-6,
        noise(1, seed=3),
        noise(2, 2, seed=4) * 2.9,
        noise(3, 4, seed=5),
    )
    return [torch.nn.Parameter(p) for p in sizes]


def pull(params: list, step: int) -> None:
    """The gradients of a step of the recorded run: two of them are 20 times as large."""
    for i, p in enumerate(params):
        wild = noise(*p.shape, seed=100 * step + i) * (20.0 if step in (23, 31) else 1.0)
        p.grad = wild + 0.3 * p.detach().sign() * (-1 if i == 3 else 1)


@pytest.mark.parametrize("name", NUMBERS)
def test_steps_are_icefalls(name):
    params = start()
    optimizer = ScaledAdam(params, 0.03, **{NAMES[k]: v for k, v in NUMBERS[name]["options"].items()})
    recorded, seen = dict(map(tuple, NUMBERS[name]["steps"])), 0
    for step in range(max(recorded) + 1):
        pull(params, step)
        optimizer.step()
        for p, theirs in zip(params, recorded.get(step, ())):
            torch.testing.assert_close(p.detach().flatten(), torch.tensor(theirs), rtol=2e-5, atol=1e-9)
            seen += 1
    assert seen == 5 * len(recorded)


def test_the_two_recorded_runs_differ():
    assert NUMBERS["plain"]["steps"][-1] != NUMBERS["clipped"]["steps"][-1]


def test_a_saved_state_goes_on_as_it_was():
    def run(stop: int | None) -> list[Tensor]:
        params = start()
        optimizer = ScaledAdam(params, 0.03, clipping=2.0, window=20)
        for step in range(30):
            if step == stop:
                state, (params, before) = optimizer.state_dict(), (start(), params)
                for p, b in zip(params, before):
                    p.data.copy_(b.data)
                optimizer = ScaledAdam(params, 0.03, clipping=2.0, window=20)
                optimizer.load_state_dict(state)
            pull(params, step)
            optimizer.step()
        return [p.detach() for p in params]

    assert all(torch.equal(a, b) for a, b in zip(run(None), run(17)))


def test_a_step_does_not_depend_on_the_size_of_the_gradient_and_goes_with_that_of_the_tensor():
    moved = []
    for size, pull_of in ((1.0, 1.0), (1.0, 1e4), (10.0, 1.0)):
        p = torch.nn.Parameter(size * noise(6, 6, seed=1) / 10)
        before = p.detach().clone()
        p.grad = pull_of * noise(6, 6, seed=2)
        ScaledAdam([p], 0.03).step()
        moved.append(p.detach() - before)
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(10 * moved[0], moved[2], rtol=1e-4, atol=1e-7)


def test_gradients_that_are_not_finite_change_nothing_where_there_is_a_limit():
    params = start()
    optimizer = ScaledAdam(params, 0.03, clipping=2.0, window=20)
    for step in range(12):
        pull(params, step)
        optimizer.step()
    for p in params:
        p.grad = torch.full_like(p, torch.nan)
    optimizer.step()
    assert all(p.isfinite().all() for p in params)


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="positive"):
        ScaledAdam(start(), 0.0)
