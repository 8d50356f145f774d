"""What every method promises, on the toys of some systems. A new method is covered by existing."""

from __future__ import annotations

import re

import pytest
import torch

import plait
from plait.core.catalog import systems
from plait.core.methods import methods
from tests.contract.examples import example, run, toy

HOSTS = [systems()[name] for name in ("vit", "deit3", "cvt", "swin", "bert", "clip")]
ONLY = {"token_growth": [systems()["tokenformer"]]}  # methods of one system's own
IN_PLACE = [m.name for m in methods().values() if not m.wraps]

NONE, LENGTH = "has no Attention that could be changed", "does not say how many it reads"
INSIDE, MORE = "has no Attend inside an Attention that could be changed", "reads more than pictures"
GRID, CAUSAL = "is bound to the grid by its", "has causal attention"
# method -> the systems that it refuses, and what it says; every other pair must work
REFUSALS = {
    "activator_glu": dict.fromkeys(("deit3", "cvt", "swin", "bert"), LENGTH),
    "cached_transformer_grc": {"cvt": NONE, "swin": NONE},
    "dual_patchnorm": dict.fromkeys(("cvt", "swin", "bert"), "has no PatchTokens that could be changed"),
    "ecoformer": {"cvt": INSIDE, "swin": INSIDE},
    "irpe": {"cvt": INSIDE, "swin": INSIDE, "bert": MORE, "clip": MORE},
    "kv_transformer": {"cvt": NONE, "swin": NONE},
    "mra_attention": {"cvt": INSIDE, "swin": INSIDE},
    "nalaformer": {"cvt": INSIDE, "swin": INSIDE},
    "polyphase_anchoring": {
        "cvt": "stages.0.embed.0, which knows borders",
        "bert": "cuts no picture into patches",
    },
    "slab": {"cvt": INSIDE, "swin": INSIDE, "bert": MORE, "clip": MORE},
    "token_growth": dict.fromkeys((h.name for h in HOSTS), "has no Pattention that could be changed"),
    "tome": {"cvt": GRID, "swin": GRID, "bert": MORE, "clip": MORE},
}


def pairs(refused: bool) -> list:
    found = [(method, host) for method in IN_PLACE for host in [*HOSTS, *ONLY.get(method, [])]]
    found = [(method, host) for method, host in found if (host.name in REFUSALS.get(method, {})) is refused]
    return [pytest.param(method, host, id=f"{method}-{host.name}") for method, host in found]


every_pair = pytest.mark.parametrize("method, host", pairs(refused=False))


def changed(method, host, seed=0):
    """The toy of `host` after `method`, and the undo."""
    model = toy(host, seed)
    return model, plait.apply_method(model, method)


def same(a, b, tolerance=0.0):
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=tolerance, atol=tolerance, msg=lambda m: f"{key}: {m}")


@pytest.mark.parametrize("method, host", pairs(refused=True))
def test_a_refusal_says_why_and_leaves_the_model_as_it_was(method, host):
    model = toy(host)
    with pytest.raises(ValueError, match=re.escape(REFUSALS[method][host.name])):
        plait.apply_method(model, method)
    before, after = toy(host).state_dict(), model.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[k], after[k]) for k in before)
    assert [(n, type(m)) for n, m in model.named_modules()] == [(n, type(m)) for n, m in toy(host).named_modules()]


def test_the_table_of_refusals_knows_its_methods_and_hosts():
    assert REFUSALS.keys() <= set(IN_PLACE)
    for method, refused in REFUSALS.items():  # and every method changes some model
        assert refused.keys() < {host.name for host in [*HOSTS, *ONLY.get(method, [])]}


@every_pair
def test_undone_nothing_is_left(method, host):
    model, undo = changed(method, host)
    plain = toy(host).eval()
    batch = example(plain)
    undo()
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in model.named_modules()] == [n for n, _ in plain.named_modules()]
    assert not model.eval().training and all(not m.training for m in model.modules())
    same(run(model, batch, host), run(plain, batch, host))


@every_pair
def test_it_answers_in_the_same_shapes_and_every_parameter_learns(method, host):
    """Some begin at zero, and what stands before them learns from the second step on."""
    model, _ = changed(method, host)
    batch = example(model, rows=4)
    want = {k: v.shape for k, v in run(toy(host).train(), batch, host).items()}
    learn = dict(p for p in model.named_parameters() if p[1].requires_grad)
    for _ in range(2):
        out = run(model.train(), batch, host)
        assert {k: v.shape for k, v in out.items()} == want and all(v.isfinite().all() for v in out.values())
        g = torch.Generator().manual_seed(0)
        sum((v * torch.randn(v.shape, generator=g)).sum() for v in out.values() if v.requires_grad).backward()
        still = [n for n, p in learn.items() if p.grad is None or not p.grad.abs().sum() > 0]
        if not still:
            break
        with torch.no_grad():
            for p in learn.values():
                p.sub_(0 if p.grad is None else 1e-3 * p.grad)
    assert learn and not still
    assert not [n for n, p in model.named_parameters() if p.dim() == 0 or p.is_meta]


@every_pair
def test_a_row_alone_equals_the_row_in_a_batch_and_padding_says_nothing(method, host):
    model, _ = changed(method, host)
    batch = example(model.eval())
    together = run(model, batch, host)
    alone = run(
        model, {k: {s: v[1:2] for s, v in x.items()} if isinstance(x, dict) else x[1:2] for k, x in batch.items()}, host
    )
    same(alone, {k: v[1:2] if v.shape[0] == 3 else v for k, v in together.items()}, 1e-5)
    for slot, keep in batch["keep"].items():
        batch[slot] = batch[slot].masked_fill(~keep, 63)
    masks = {k.shape[1]: k for k in batch["keep"].values()}
    for key, value in run(model, batch, host).items():
        real = masks[value.shape[1]][..., None] if value.dim() == 3 and value.shape[1] in masks else torch.tensor(True)
        torch.testing.assert_close(
            value.masked_fill(~real, 0), together[key].masked_fill(~real, 0), rtol=1e-5, atol=1e-5
        )


@every_pair
def test_its_weights_can_be_kept(method, host):
    one, _ = changed(method, host, seed=1)
    two, _ = changed(method, host, seed=2)
    plait.load_weights(two, {k: v.clone() for k, v in one.state_dict().items()})
    batch = example(one)
    same(run(one.eval(), batch, host), run(two.eval(), batch, host))


@every_pair
def test_it_compiles_whole(method, host):
    torch._dynamo.reset()
    model, _ = changed(method, host)
    batch = example(model.eval())
    with torch.no_grad():
        compiled = torch.compile(lambda b: run(model, b, host), fullgraph=True, backend="eager")
        same(run(model, batch, host), compiled(batch), 1e-5)


def test_unknown_methods_and_options_are_told():
    with pytest.raises(ValueError, match="did you mean sinkformer"):
        plait.apply_method(toy(HOSTS[0]), "sinkforme")
    with pytest.raises(ValueError, match="its options are steps"):
        plait.apply_method(toy(HOSTS[0]), "sinkformer", turns=3)
