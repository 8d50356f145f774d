"""The seam in attention, the one signature of layers, and what leaves a layer: for all systems."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

import plait
from plait.core.attend import Attend, recorded, seams
from plait.core.block import FeedForward, Layer, bound_to_grid
from plait.core.memory import Page
from plait.core.recompute import recompute
from plait.core.tokens import Tokens, real
from plait.systems.text.fnet import row_waves
from tests.contract.examples import SYSTEMS, example, flatten, gradients, run, same_gradients, toy
from tests.parity.compare import perturb

every_system = pytest.mark.parametrize("system", [pytest.param(s, id=s.name) for s in SYSTEMS])


def layers_with_inputs(model: nn.Module, system) -> list[tuple[Layer, Tokens]]:
    """Every layer of `model` with the tokens that it was first given when the model ran."""
    seen: dict[Layer, Tokens] = {}

    def note(layer: nn.Module, inputs: tuple) -> None:
        if isinstance(inputs[0], Tokens):
            seen.setdefault(layer, inputs[0])

    hooks = [m.register_forward_pre_hook(note) for m in model.modules() if isinstance(m, Layer)]
    with torch.no_grad():
        run(model, example(model), system)
    for hook in hooks:
        hook.remove()
    return list(seen.items())


def repeated(t: Tokens, counts: torch.Tensor) -> Tokens:
    """Token i stands there counts[i] times."""
    keep = None if t.keep is None else t.keep.repeat_interleave(counts, 1)
    pos = t.pos if t.pos is None else t.pos.repeat_interleave(counts, 0 if t.pos.shape[0] == len(counts) else 1)
    prefix = int(counts[: t.prefix].sum())
    if t.context is not None and "allow" in t.context:
        t = t.reading(allow=t.read("allow").repeat_interleave(counts, -2).repeat_interleave(counts, -1))
    return t.replace(x=t.x.repeat_interleave(counts, 1), keep=keep, pos=pos, prefix=prefix, grid=None, kinds=None)


@torch.no_grad()
@every_system
def test_a_weight_of_n_is_the_token_n_times_or_the_layer_raises(system):
    model = toy(system).eval()
    for layer, t in layers_with_inputs(model, system):
        counts = torch.ones(t.x.shape[1], dtype=torch.int64)
        counts[t.prefix :: 2] = 2
        counts[-1] = 3
        try:
            heavy = layer(t.replace(weight=counts.float().expand(t.x.shape[0], -1), grid=None, kinds=None))
        except ValueError:
            continue
        light = layer(repeated(t, counts))
        where = real(t)[..., None]
        torch.testing.assert_close(
            heavy.x.masked_fill(~where, 0).repeat_interleave(counts, 1),
            light.x.masked_fill(~where.repeat_interleave(counts, 1), 0),
            rtol=1e-4,
            atol=1e-5,
            msg=lambda m, layer=layer: f"{type(layer).__name__}: {m}",
        )


DERIVED = {  # what the context holds that follows from the mask
    "fnet": lambda keep: {"waves": row_waves(keep)},
    "zipformer": lambda keep: {"see": keep},
}


@torch.no_grad()
@every_system
def test_what_is_not_real_is_not_heard_or_the_layer_raises(system):
    model = toy(system).eval()
    for layer, t in layers_with_inputs(model, system):
        if t.memory is not None:
            continue  # what may be attended to stands in its page
        keep = real(t).clone()
        keep[:, -2:] = False
        if system.name in DERIVED:
            t = t.reading(**DERIVED[system.name](keep))
        garbage = t.x.clone()
        garbage[:, -2:-1], garbage[:, -1:] = 1e3, float("nan")
        try:
            quiet = layer(t.replace(keep=keep))
        except ValueError:
            continue
        loud = layer(t.replace(keep=keep, x=garbage))
        torch.testing.assert_close(
            quiet.x.masked_fill(~keep[..., None], 0),
            loud.x.masked_fill(~keep[..., None], 0),
            rtol=1e-4,
            atol=1e-5,
            msg=lambda m, layer=layer: f"{type(layer).__name__}: {m}",
        )


@torch.no_grad()
@every_system
def test_layers_say_whether_they_are_bound_to_the_grid(system):
    model = toy(system).eval()
    for layer, t in layers_with_inputs(model, system):
        if t.grid is None:
            continue
        try:
            layer(t.replace(grid=None))
            needs = False
        except (ValueError, TypeError):
            needs = True
        assert needs == bound_to_grid(layer), type(layer).__name__


class Probe(Attend):
    """Attention that gives out a loss, and counts how often it was asked."""

    def __init__(self, old: Attend, counts: list):
        super().__init__(causal=old.causal, dropout=old.dropout, cross=old.cross)
        self.counts = counts

    def forward(self, t: Tokens, q, k, v, **how) -> Tokens:
        self.counts.append(q.square().mean())
        return super().forward(t, q, k, v, **how).add_loss("probe", self.counts[-1])


class ProbeFeed(nn.Module):
    def __init__(self, f: FeedForward, counts: list):
        super().__init__()
        self.f, self.counts = f, counts

    def forward(self, t: Tokens) -> Tokens:
        self.counts.append(t.x.square().mean())
        return self.f(t).add_loss("probe", self.counts[-1])


def probed(model: nn.Module) -> list:
    counts: list = []
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is Attend:
                setattr(parent, name, Probe(child, counts))
            elif type(child) is FeedForward and not isinstance(parent, ProbeFeed):
                setattr(parent, name, ProbeFeed(child, counts))
    return counts


@torch.no_grad()
@every_system
def test_what_an_inner_part_gives_out_leaves_the_layer(system):
    model = toy(system).eval()
    layers = layers_with_inputs(model, system)
    counts = probed(model)
    for layer, t in layers:
        counts.clear()
        out = layer(t.replace(losses={"before": torch.ones(())}))
        assert out.losses["before"] == 1, f"{type(layer).__name__} drops what came in"
        if counts:
            name = type(layer).__name__
            assert "probe" in out.losses, f"{name} drops the losses of its {len(counts)} parts"
            torch.testing.assert_close(out.losses["probe"], sum(counts), msg=lambda m, n=name: f"{n}: {m}")


MAPS = {"fmvit", "nextvit", "t2t_vit"}  # some of whose layers are given maps, which hold no losses


@torch.no_grad()
@every_system
def test_what_layers_give_out_leaves_the_model_too(system):
    """A backbone's tokens carry the sum of all; whoever fuses hands out what his fusion's layers gave."""
    model = toy(system).eval()
    counts, batch = probed(model), example(model)
    if not any(isinstance(m, (Probe, ProbeFeed)) for m in model.modules()):
        pytest.skip("has neither attention nor feed-forward steps of the usual kind")
    if "backbone" in system.roles:
        (slot,) = model.takes
        try:
            t = model.tokens(batch[slot], batch["keep"].get(slot))
        except ValueError as error:
            assert system.name in MAPS and "maps flow through" in str(error)
            return
        assert system.name not in MAPS
        if counts:
            torch.testing.assert_close(t.losses["probe"], sum(counts))
    elif {"fuser", "detector"} & set(system.roles):
        out = model.fuse(batch) if "fuser" in system.roles else model(batch[model.takes[0]])
        losses = out.get("losses", {})
        assert losses.get("probe", 0) > 0, 'what layers gave must be handed out: "losses": t.losses or {}'
    else:
        pytest.skip("hands out vectors or words alone")


@torch.no_grad()
@every_system
def test_the_page_of_a_layer_comes_out_or_it_raises(system):
    model = toy(system).eval()
    for layer, t in layers_with_inputs(model, system):
        if t.memory is not None or not seams(layer):
            continue
        try:
            out = layer(t.replace(memory=Page({}, real(t))))
        except ValueError:
            continue
        assert isinstance(out.memory, Page) and out.memory.streams, f"{type(layer).__name__} loses its page"


@every_system
@pytest.mark.parametrize("reentrant", [False, True], ids=["new", "reentrant"])
def test_recomputed_layers_give_the_same_gradients(system, reentrant):
    model = toy(system).eval()
    batch = example(model)
    want = gradients(model, run(model, batch, system))
    try:
        undo = recompute(model, reentrant=reentrant)
    except ValueError:
        pytest.skip("is not made of layers of tokens")
    batch = {
        k: v.requires_grad_() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in batch.items()
    }
    out = run(model, batch, system)
    g = torch.Generator().manual_seed(0)
    sum((v * torch.randn(v.shape, generator=g)).sum() for v in out.values() if v.requires_grad).backward()
    same_gradients({n: p.grad for n, p in model.named_parameters() if p.requires_grad}, want)
    undo()
    assert not any("forward" in vars(m) for m in model.modules())


@every_system
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's kernel, row by row
def test_gradients_of_each_row_by_vmap(system):
    model = toy(system).eval()
    batch = example(model, rows=2)
    weights = {n: p.detach() for n, p in model.named_parameters()}
    held = dict(model.named_buffers())

    def loss(weights, row):
        row, said = tree_map(lambda v: v[None], row), {}
        given = (row,) if len(model.takes) > 1 else (row[model.takes[0]], row["keep"].get(model.takes[0]))
        flatten("logits", torch.func.functional_call(model, (weights, held), given), said)
        return sum((out * torch.linspace(-1, 1, out.shape[-1])).sum() for out in said.values())

    rows = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, batch)
    alone = [torch.func.grad(loss)(weights, tree_map(lambda v: v[i], batch)) for i in range(2)]
    for i in range(2):
        same_gradients({n: g[i] for n, g in rows.items()}, alone[i])


def test_two_threads_that_record_see_only_their_own():
    model = plait.create_model("vit_toy").eval()
    pictures = torch.rand(2, 3, 32, 32)
    alone = []
    for x in pictures:
        twin, maps = recorded(model)
        twin(x[None])
        alone.append(maps)
    found: dict[int, list] = {}

    def work(i: int) -> None:
        twin, maps = recorded(model)
        for _ in range(20):
            twin(pictures[i][None])
        found[i] = maps

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(40):
        model(pictures[:1])  # somebody predicts meanwhile
    for thread in threads:
        thread.join()
    for i in range(2):
        assert len(found[i]) == 20 * len(alone[i])
        assert all(torch.equal(m, alone[i][j % len(alone[i])]) for j, m in enumerate(found[i]))
    assert not any(m.tape is not None for m in seams(model))


def test_sinkformer_changes_every_system_that_holds_the_seam_and_is_not_causal():
    changed, refused = [], {}
    for system in SYSTEMS:
        model = perturb(toy(system)).eval()  # some add what attention says with a weight of a millionth at first
        if not seams(model):
            continue
        batch = example(model)
        with torch.no_grad():
            before = run(model, batch, system)
        try:
            undo = plait.apply_method(model, "sinkformer", steps=5)
        except ValueError as error:
            refused[system.name] = str(error)
            continue
        with torch.no_grad():
            try:
                after = run(model, batch, system)
            except plait.errors.PlaitError as error:  # causal by what its tokens' context says, when it writes
                assert "memory" in str(error) or "may not attend" in str(error)
                refused[system.name] = f"causal when run: {error}"
            undo()
            back = run(model, batch, system)
        if system.name in refused:
            assert all(torch.equal(before[k], back[k]) for k in before)
            continue
        assert any(not torch.equal(before[k], after[k]) for k in before), system.name
        assert all(v.isfinite().all() for v in after.values())
        assert all(torch.equal(before[k], back[k]) for k in before)
        changed.append(system.name)
    assert len(changed) >= 45, (len(changed), refused)
    # fie's words look at more than themselves: no matrix of theirs is square
    assert {name for name, why in refused.items() if "causal" not in why} == {"fie", "gemma_encoder", "tic"}, refused
