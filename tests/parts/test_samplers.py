"""Samplers against the numbers that DiT's own code gave, and on a Gaussian, whose way back is known."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from plait.parts.samplers.diffusion import Diffusion, cosine, ddim, ddpm, linear, spaced
from plait.parts.samplers.flow import euler, heun, mixed, times, velocity
from plait.parts.samplers.guidance import guided
from tests.parity.recorded import noise

OFFICIAL = json.loads(Path(__file__).with_name("samplers.json").read_text(encoding="utf-8"))
CHAINS = {
    "linear": Diffusion(linear()),
    "cosine": Diffusion(cosine()),
    "ten": Diffusion(linear()).respaced(10),
    "cosine_seven": Diffusion(cosine()).respaced(7),
}
close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-6)


def unit(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    return noise(name, shape) * (torch.Size(shape).numel() / shape[0]) ** 0.5


def drawn(shape: tuple[int, ...]):
    calls = iter(range(100))
    return lambda: unit(f"draw {next(calls)}", shape)


def said(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The smooth function that both were asked."""
    t = t.float().view(-1, 1, 1, 1)
    return torch.cat([torch.tanh(x.flip(-1) + 0.3 * x + t / 700), torch.sin(2 * x - t / 300)], 1)


X = noise("samples", (3, 2, 2, 2)) * 2


@pytest.mark.parametrize("name", CHAINS)
def test_schedules_and_losses_are_the_official_ones(name):
    chain, want = CHAINS[name], OFFICIAL[name]
    every = max(1, len(chain) // 8)
    torch.testing.assert_close(chain.betas[::every], torch.tensor(want["betas"]).double(), rtol=1e-6, atol=0)
    assert chain.times[::every].tolist() == want["times"]
    t, clean, eps = torch.tensor([0, 1, len(chain) - 1]), X.clamp(-1, 1), unit("noise", X.shape)
    x = chain.noised(clean, t, eps)
    mse, bound = chain.losses(said(x, chain.times[t]), x, t, clean, eps)
    close(mse, torch.tensor(want["mse"]))
    torch.testing.assert_close(bound, torch.tensor(want["vb"]), rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["ten", "cosine_seven"])
def test_each_walk_back_is_the_official_one(name):
    chain, want, shape = CHAINS[name], OFFICIAL[name], tuple(X.shape)
    found = {
        "ddpm": ddpm(said, X, chain, drawn(shape)),
        "ddpm_clipped": ddpm(said, X, chain, drawn(shape), clip=1.0),
        "ddim": ddim(said, X, chain),
        "ddim_eta": ddim(said, X, chain, drawn(shape), eta=0.7),
    }
    for walk, x in found.items():
        torch.testing.assert_close(x.flatten(), torch.tensor(want[walk]), rtol=1e-4, atol=1e-5, msg=lambda m: walk + m)


def test_a_fixed_variance_is_the_larger_one():
    x = ddpm(lambda x, t: said(x, t)[:, :2], X, CHAINS["ten"], drawn(tuple(X.shape)))
    torch.testing.assert_close(x.flatten(), torch.tensor(OFFICIAL["fixed"]["ddpm"]), rtol=1e-4, atol=1e-5)


MEAN, SPREAD = 0.7, 0.4  # of the Gaussian whose samples are wanted


def noise_of(chain: Diffusion, x, time):
    """E[noise | x] where clean samples are that Gaussian."""
    left = chain.left[time].float().view(-1, 1)
    share = (1 - left).sqrt()
    return share * (x - left.sqrt() * MEAN) / (left * SPREAD**2 + 1 - left)


def velocity_of(x, time):
    t = time.view(-1, 1)
    variance = (1 - t) ** 2 * SPREAD**2 + t**2
    off = (x - (1 - t) * MEAN) / variance  # E[noise | x] = t off, E[clean | x] = MEAN + (1 - t) SPREAD^2 off
    return t * off - MEAN - (1 - t) * SPREAD**2 * off


@pytest.mark.parametrize("walk", ["ddpm", "ddim", "ddim eta", "euler", "heun 20"])
def test_a_gaussian_comes_out_with_its_mean_and_spread(walk):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 1, generator=g)
    chain = Diffusion(linear())
    draw = lambda: torch.randn(20_000, 1, generator=g)  # noqa: E731
    ask = partial(noise_of, chain)
    x = {
        "ddpm": lambda: ddpm(ask, x, chain.respaced(250), draw),
        "ddim": lambda: ddim(ask, x, chain.respaced(250)),
        "ddim eta": lambda: ddim(ask, x, chain.respaced(250), draw, eta=1.0),
        "euler": lambda: euler(velocity_of, x, 200),
        "heun 20": lambda: heun(velocity_of, x, 20),
    }[walk]()
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.01) and float(x.std()) == pytest.approx(SPREAD, abs=0.012)


def test_heun_is_of_second_order():
    x = torch.linspace(-2, 2, 9)[:, None]
    true = MEAN + SPREAD * x  # the line of a Gaussian's quantiles
    errors = {
        (f.__name__, n): float((f(velocity_of, x, n) - true).abs().max()) for f in (euler, heun) for n in (10, 40)
    }
    assert errors["heun", 10] < errors["euler", 10] / 3
    assert errors["euler", 10] / errors["euler", 40] < 6 < 8 < errors["heun", 10] / errors["heun", 40]


def test_a_line_leads_from_the_sample_to_noise_at_the_velocity_that_is_learnt():
    clean, eps = torch.rand(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    assert torch.equal(mixed(clean, torch.zeros(4), eps), clean) and torch.equal(mixed(clean, torch.ones(4), eps), eps)
    time = torch.tensor([0.1, 0.3, 0.5, 0.9])
    close(mixed(clean, time, eps) + 0.05 * velocity(clean, eps), mixed(clean, time + 0.05, eps))
    assert times(4).tolist() == [1, 0.75, 0.5, 0.25, 0] and times(4, 3.0)[2] == 0.75


def test_guidance_of_one_is_the_model_itself_and_more_leads_away_from_nothing():
    asked = []

    def denoise(x, time, condition):
        asked.append(len(x))
        return torch.cat([x * condition[:, :1, None, None] + time.view(-1, 1, 1, 1), x + 1], 1)

    x, time = torch.randn(3, 2, 4, 4), torch.rand(3)
    condition, nothing = torch.rand(3, 5), torch.zeros(3, 5)
    plain = denoise(x, time, condition)
    assert torch.equal(guided(denoise, condition, nothing, 1.0)(x, time), plain)
    assert torch.equal(guided(denoise, condition, nothing, 0.0)(x, time), denoise(x, time, nothing))
    asked.clear()
    strong = guided(denoise, condition, nothing, 3.0)(x, time)
    assert asked == [6]
    close(strong[:, :2], 3 * plain[:, :2] - 2 * denoise(x, time, nothing)[:, :2])
    assert torch.equal(strong[:, 2:], plain[:, 2:])  # a variance is not guided
    some = guided(denoise, condition, nothing, 3.0, channels=1)(x, time)
    close(some[:, :1], strong[:, :1])
    assert torch.equal(some[:, 1:], plain[:, 1:])


@pytest.mark.parametrize("count", [0, 1001])
def test_steps_that_there_are_not_are_refused(count):
    with pytest.raises(ValueError, match="expected 1 to 1000"):
        spaced(1000, count)
    assert spaced(1000, 1) == [0] and spaced(1000, 4) == [0, 333, 666, 999]
