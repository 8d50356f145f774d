"""What users do to a finished model, of every system: look into it, teach part of it, give it other classes."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import plait
from plait.core.layers import outermost, slow_down, tapped
from plait.core.surgery import freeze
from plait.core.tokens import Tokens
from plait.errors import PlaitError
from plait.methods.adaptation.lora import merge
from plait.parts.adapters import LoRALinear
from plait.train.optim import groups
from tests.contract.examples import SYSTEMS, example, kind, run, toy

every_system = pytest.mark.parametrize("system", [pytest.param(s, id=s.name) for s in SYSTEMS])

# layers that own weights and are not called, and why
UNREAD = {"llava": r"vision\.(stack\.blocks\.1\.|norm)"}  # it reads the layer before the last; files hold the rest


@torch.no_grad()
@every_system
def test_every_layer_that_owns_weights_is_called(system):
    """Else adapters, hooks and whole numbers of eight bits miss it."""
    model, called = toy(system).eval(), set()
    for module in model.modules():
        module.register_forward_pre_hook(lambda module, _: called.add(module))
    run(model, example(model), system)
    owners = {n: m for n, m in model.named_modules() if n and any(True for _ in m.parameters(recurse=False))}
    missed = [n for n, m in owners.items() if m not in called]
    unread = [n for n in owners if re.match(UNREAD.get(system.name, "$"), n)]
    assert missed == unread


@torch.no_grad()
@every_system
def test_adapters_on_every_linear_layer_speak_learn_and_merge(system):
    model = toy(system).eval()
    if not any(type(m) is nn.Linear for m in model.modules()):
        with pytest.raises(PlaitError, match="has no Linear that could be changed"):
            plait.apply_method(model, "lora", targets="all")
        return
    batch = example(model)
    before = run(model, batch, system)
    plait.apply_method(model, "lora", rank=2, targets="all")
    for key, value in run(model, batch, system).items():
        torch.testing.assert_close(value, before[key], rtol=1e-5, atol=1e-6)
    g = torch.Generator().manual_seed(0)
    adapters = [m for m in model.modules() if isinstance(m, LoRALinear)]
    for m in adapters:
        m.lora_B.weight.normal_(std=0.1, generator=g)
    changed = run(model, batch, system)
    assert any(not torch.allclose(v, before[k]) for k, v in changed.items())
    assert all(".lora_" in name for name, p in model.named_parameters() if p.requires_grad)
    merge(model)
    for key, value in run(model, batch, system).items():
        torch.testing.assert_close(value, changed[key], rtol=1e-4, atol=1e-5)


@every_system
def test_another_number_of_classes(system):
    model = toy(system).eval()
    key = next((k for k in ("num_classes", "labels") if k in model.origin[1]), None)
    if not getattr(model, "classifier", ()):
        with pytest.raises(PlaitError, match="has no classifier"):
            plait.reset_classifier(model, 7)
        return
    before = dict(model.state_dict())
    freeze(model)
    plait.reset_classifier(model, 7, seed=3)
    want = plait.create_model(f"{system.name}_toy", seed=3, **{key: 7}).state_dict()
    assert list(model.state_dict()) == list(want)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, (want if name.startswith(model.classifier) else before)[name]), name
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert learning and all(n.startswith(model.classifier) for n in learning)
    assert not model.training and not any(m.training for m in model.modules())


@torch.no_grad()
@every_system
def test_what_each_layer_gives_can_be_looked_at(system):
    model = toy(system).eval()
    if not outermost(model):
        with pytest.raises(PlaitError, match="has no Layer"):
            tapped(model)
        return
    batch = example(model)
    twin, given = tapped(model)
    plain = run(model, batch, system)
    assert not given
    for key, value in run(twin, batch, system).items():
        torch.testing.assert_close(value, plain[key], rtol=1e-5, atol=1e-6)
    unread = {n for n in outermost(model) if re.match(UNREAD.get(system.name, "$"), f"{n}.")}
    assert set(given) == set(outermost(model)) - unread
    for t in given.values():  # maps flow through some
        assert (t.x if isinstance(t, Tokens) else t).isfinite().all()


def rates(model: nn.Module) -> dict[str, float]:
    return {name: group["lr_factor"] for group in groups(model, 0.05) for name in group["names"]}


@every_system
def test_layers_further_down_learn_more_slowly(system):
    model = toy(system)
    undo = slow_down(model, 0.5)
    found, classes = rates(model), tuple(getattr(model, "classifier", ()))
    assert all(f in {0.5**n for n in range(20)} for f in found.values())
    assert all(f == 1.0 for n, f in found.items() if classes and n.startswith(classes))
    own = {}  # of each outermost layer, in order, by the list that it stands in
    for name in outermost(model):
        factor = {f for n, f in found.items() if n.startswith(f"{name}.")}
        if not factor:  # frozen
            continue
        (factor,) = factor
        own.setdefault(name.rpartition(".")[0], []).append(factor)
    for factors in own.values():
        assert all(b == 2 * a for a, b in zip(factors, factors[1:])) and factors[-1] <= 0.5
    if len(model.takes) == 1 and own:
        assert next(iter(found.values())) < min(map(min, own.values()))  # what reads the input
    undo()
    assert set(rates(model).values()) == {1.0}


def test_the_rates_of_layers_are_those_of_timm():
    from tests.peers import declare_torchvision

    declare_torchvision()
    import timm
    from timm.optim import param_groups_layer_decay

    theirs = timm.create_model("vit_tiny_patch16_224", depth=3)
    names = {id(p): n for n, p in theirs.named_parameters()}
    want = {names[id(p)]: g["lr_scale"] for g in param_groups_layer_decay(theirs, layer_decay=0.7) for p in g["params"]}
    ours = plait.create_model("vit_tiny_patch16_224", depth=3)
    slow_down(ours, 0.7)
    # timm lets the last norm learn as the last layer does, BEiT as the head
    parts = {"blocks.0.": "stack.blocks.0.", "blocks.2.": "stack.blocks.2.", "patch_embed": "patch_embed.",
             "head": "head."}  # fmt: skip
    found = rates(ours)
    for a, b in parts.items():
        (mine,), (peer,) = ({f for n, f in all_.items() if n.startswith(p)} for all_, p in ((found, b), (want, a)))
        assert abs(mine - peer) < 1e-6, a


@torch.no_grad()
@pytest.mark.parametrize("system", [pytest.param(s, id=s.name) for s in SYSTEMS if "image" in s.takes])
def test_channels_last_in_memory_say_the_same(system):
    model = toy(system).eval()
    batch = example(model, rows=2)
    plain = run(model, batch, system)
    last = {k: v.contiguous(memory_format=torch.channels_last) if kind(k) == "image" else v for k, v in batch.items()
            if k in model.takes}  # fmt: skip
    if all(p.dim() < 5 for p in model.parameters()):  # torch turns no others
        model.to(memory_format=torch.channels_last)
    turned = run(model, batch | last, system)
    for key, value in turned.items():
        torch.testing.assert_close(value, plain[key], rtol=1e-5, atol=1e-5)
