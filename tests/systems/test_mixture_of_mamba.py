"""Mixture-of-Mamba: a dense Mamba where all copies are equal, steps that know each token's modality, padding that is
not there."""

from __future__ import annotations

import pytest
import torch

import plait
from plait.core.init import initialise
from plait.core.tokens import Tokens
from plait.parts.mixers.mamba import layout
from plait.systems.unified.mixture_of_mamba import MambaMixture, Routed
from tests.parity.compare import count, perturb
from tests.parity.mixture_of_mamba import inputs, official, widths
from tests.peers import declare_torchvision


def mixer(kinds: int) -> MambaMixture:
    with torch.device("meta"):
        model = MambaMixture(32, kinds, size=4)
    return perturb(initialise(model))


@torch.no_grad()
def test_equal_copies_are_the_dense_mamba_of_transformers():
    declare_torchvision()
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    theirs = perturb(MambaMixer(MambaConfig(hidden_size=32, state_size=4, use_mambapy=False), layer_idx=0))
    ours, state = mixer(3), theirs.state_dict()
    for name, public in {"into": "in_proj", "choose": "x_proj", "pace": "dt_proj", "out": "out_proj"}.items():
        for expert in getattr(ours, name).experts:
            expert.load_state_dict({k: state[f"{public}.{k}"] for k in expert.state_dict()})
    ours.conv.load_state_dict({k: state[f"conv1d.{k}"] for k in ("weight", "bias")})
    ours.rates.copy_(state["A_log"])
    ours.skip.copy_(state["D"])
    x, kinds = inputs()
    torch.testing.assert_close(ours(Tokens(x).reading(layout=layout(kinds, None))).x, theirs(x), rtol=1e-6, atol=1e-6)


def test_a_token_costs_what_it_costs_in_a_dense_mamba():
    model, x = mixer(3), torch.randn(2, 9, 32)
    model(Tokens(x).reading(layout=layout(((1, 9),), None))).x.sum().backward()
    active = sum(p.numel() for p in model.parameters() if p.grad is not None)
    assert active == count(mixer(1)) < count(model)
    assert all(ours == theirs for ours, theirs in widths().values())


@torch.no_grad()
@pytest.mark.parametrize("which", ["mixture", "dense"])
def test_steps_equal_the_whole_on_a_mixed_sequence(which):
    (x, kinds), model = inputs(), official(which)
    kinds = kinds * (which == "mixture")
    state = model.start(2)
    whole, after = model.run(x, layout(kinds, None), None, state)
    for n in range(20):
        y, state = model.step(x[:, n], kinds[:, n], state)
        torch.testing.assert_close(y, whole[:, n], rtol=1e-5, atol=1e-5)
    for a, b in zip(state, after):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    if which == "mixture":  # the kind of a token matters to its step
        other, _ = model.step(x[:, 0], (kinds[:, 0] + 1) % 3, model.start(2))
        assert not torch.allclose(other, whole[:, 0], atol=1e-3)


@torch.no_grad()
def test_a_row_reads_as_if_it_had_no_padding():
    (x, kinds), model = inputs(), mixer(3)
    keep = torch.rand(2, 20, generator=torch.Generator().manual_seed(1)) > 0.4
    dirty = x.masked_fill(~keep[..., None], 1e3)
    y, after = model.run(dirty, layout(kinds, keep), keep, model.start(2))
    for row in range(2):
        real = keep[row]
        alone, state = model.run(x[row, real][None], layout(kinds[row, real][None], None), None, model.start(1))
        torch.testing.assert_close(y[row, real], alone[0], rtol=1e-5, atol=1e-5)
        for a, b in zip(after, state):
            torch.testing.assert_close(a[row], b[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_runs_and_single_kinds_say_the_same():
    linear = initialise(Routed(3, 8, 6, bias=True))
    x, kinds = torch.randn(2, 9, 8), torch.tensor([0, 0, 2, 2, 2, 1, 0, 0, 0]).expand(2, -1)
    torch.testing.assert_close(linear(x, ((0, 2), (2, 3), (1, 1), (0, 3))), linear(x, kinds))


@torch.no_grad()
def test_the_whole_model_steps_too():
    model = plait.create_model("mixture_of_mamba_toy").eval()
    batch = {"image": torch.rand(2, 3, 32, 32), "text": torch.randint(5, 64, (2, 12))}
    whole, states, n = model.read(batch).x, model.start(2), 0
    for kind, (slot, reader) in enumerate(model.slots.items()):
        shape, dtype = model.blanks[slot]
        tokens = reader(batch.get(slot, torch.zeros(2, *shape, dtype=dtype)), None).x
        for x in tokens.unbind(1) if slot in batch else ():
            y, states = model.step(x, torch.full((2,), kind), states)
            torch.testing.assert_close(y, whole[:, n], rtol=1e-5, atol=1e-5)
            n += 1
        n += 0 if slot in batch else tokens.shape[1]  # a blank takes places that nothing reads
    assert n == whole.shape[1]
