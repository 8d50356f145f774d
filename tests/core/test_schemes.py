"""Beginnings as papers have them, beside timm's models: each parameter's spread and shape, each block's rate."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

import plait
from plait.core import schemes
from plait.core.block import DropPath
from plait.core.catalog import build, model_class, model_info, systems
from plait.core.create import rules_of
from plait.core.schemes import drop_path_of, paper_of, with_papers
from plait.core.weights import convert
from plait.errors import PlaitError
from tests.peers import declare_torchvision

MOST = 20_000  # numbers of a parameter, or of all of one name, that are compared
# A size each, the smallest that timm has, and what differs from size to size.
SIZES = {
    "crossvit": "tiny",
    "davit": "tiny",
    "deit": "tiny_distilled_patch16_224",
    "deit3": "small_patch16_224",
    "dinov2": "small_patch14_reg4",
    "edgenext": "xx_small",
    "efficientvit_m": "m0",
    "gmlp": "ti16_224",
    "hiera": "tiny_224",
    "maxvit": "tiny_tf_224",
    "nextvit": "small",
    "resnet": "18",
    "sequencer2d": "s",
    "swin": "tiny_patch4_window7_224",
    "tiny_vit": "5m_224",
    "tnt": "s_legacy_patch16_224",
    "twins": "svt_small",
    "vit": "tiny_patch16_224",
    "vit_beit3": "base_patch16_224",
    "vit_clip": "base_patch32_224",
    "vit_siglip": "base_patch16_224",
    "vitamin": "small_224",
}


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest distance between two samples' distributions (Kolmogorov, Smirnov), from 0 to 1."""
    every = torch.cat([ours, theirs]).sort().values
    below = [torch.searchsorted(t.sort().values, every, right=True) / len(t) for t in (ours, theirs)]
    return float((below[0] - below[1]).abs().max())


def faults(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    """Where two parameters do not begin alike, as far as so many numbers tell: constants, spread, and the shape of
    the distribution with its bounds."""
    a, b = (t.double().flatten() for t in (ours, theirs))
    if a.std() == 0 or b.std() == 0:
        return "" if a.std() == b.std() == 0 and a[0] == b[0] else f"got {a[:3].tolist()}, expected {b[:3].tolist()}"
    # timm's and torch's cut-off normal is at times the bound itself, by float32's rounding
    spread = [t[t.abs() < 10 * t.std().clamp(max=t.abs().median() * 2)].std() for t in (a, b)]
    if abs(spread[0] / spread[1] - 1) > 6 / len(a) ** 0.5:
        return f"spread {spread[0]:.4g}, expected {spread[1]:.4g}"
    if len(a) > MOST:
        pick = torch.randperm(len(a), generator=torch.Generator().manual_seed(0))[:MOST]
        a, b = a[pick], b[pick]
    n = len(a)
    if abs(a.mean() - b.mean()) > 6 * b.std() * (2 / n) ** 0.5:
        return f"mean {a.mean():.3g}, expected {b.mean():.3g}"
    if apart(a, b) > 2.7 * (2 / n) ** 0.5:
        return f"spread {a.std():.3g}, expected {b.std():.3g}; distributions {apart(a, b):.3f} apart"
    return ""


def rates(model: nn.Module) -> list[float]:
    """Those of stochastic depth: it grows from block to block, so that each has its own."""
    found = [m.rate if isinstance(m, DropPath) else getattr(m, "drop_prob", 0.0)
             for m in model.modules() if type(m).__name__.startswith("DropPath")]  # fmt: skip
    return sorted({round(r, 6) for r in found if r})


@pytest.fixture(scope="module")
def timm():
    declare_torchvision()
    return pytest.importorskip("timm", reason="pip install timm: the reference")


def test_every_system_that_timm_has_is_here():
    assert sorted(SIZES) == with_papers() and len(SIZES) >= 20
    known = {s.name for s in systems().values() for row in s.weights.values() if "timm" in row["references"]}
    assert known == set(SIZES)


@pytest.mark.parametrize("system", SIZES)
def test_a_paper_begins_as_its_reference(system, timm):
    name = f"{system}_{SIZES[system]}"
    info = model_info(name)
    rate = drop_path_of(info, paper_of(info, "paper"))
    torch.manual_seed(1)
    theirs = timm.create_model(info.references["timm"], **({"drop_path_rate": rate["drop_path"]} if rate else {}))
    ours = plait.create_model(name, scheme="paper")
    want = convert(theirs.state_dict(), rules_of(ours, "timm"))
    told = {k: fault for k, p in ours.named_parameters() if (fault := faults(p.detach(), want[k]))}
    assert not told, "\n".join(f"{k}: {v}" for k, v in told.items())
    assert rates(ours) == pytest.approx(rates(theirs), abs=2e-6)


@pytest.mark.parametrize("system", SIZES)
def test_every_rule_is_of_some_size(system):
    """A rule that fits nothing would be a name misspelt."""
    import fnmatch

    paper, fits = paper_of(model_info(f"{system}_{SIZES[system]}"), "paper"), set()
    own = [name for name in systems()[system].sizes]
    if callable(paper.rules):
        return
    models = [build(f"{system}_{size}") for size in own]
    shared = {pattern for pattern, _ in (*schemes.VIT, *schemes.FAN_OUT, *schemes.TABLES, *schemes.LINEAR)}
    for model in models:
        for name, module in model.named_modules():
            kinds = [kind.__name__ for kind in type(module).__mro__]
            for leaf, _ in module.named_parameters(recurse=False):
                names = [f"{name}.{leaf}".lstrip("."), *(f"{kind}.{leaf}" for kind in kinds)]
                fits |= {p for p, _ in paper.rules if any(fnmatch.fnmatchcase(n, p) for n in names)}
    assert {p for p, _ in paper.rules} - shared <= fits
    for pattern in paper.drop_path:
        assert any(fnmatch.fnmatchcase(size, pattern) for size in own)
        assert "drop_path" in inspect.signature(model_class(model_info(system))).parameters


def test_a_scheme_is_asked_for_and_others_are_refused(tmp_path):
    usual, paper, again = (plait.create_model("vit_toy", scheme=s, seed=3) for s in (None, "paper", "paper"))
    mine, other = (m.state_dict()["stack.blocks.0.feed.f.up.weight"] for m in (usual, paper))
    assert mine.std() > 2 * other.std() and other.std() == pytest.approx(0.02, rel=0.1)
    assert all(torch.equal(a, b) for a, b in zip(paper.parameters(), again.parameters()))
    differ = plait.create_model("vit_toy", scheme="paper", seed=4)
    assert not torch.equal(differ.head.weight, paper.head.weight)
    state = torch.random.get_rng_state()
    plait.create_model("vit_toy", scheme="paper")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert max(rates(plait.create_model("deit_toy", scheme="paper"))) == pytest.approx(0.1)
    assert rates(plait.create_model("deit_toy", scheme="paper", drop_path=0.0)) == []
    with pytest.raises(PlaitError, match="bert_toy: how its paper begins is not told here, only of .*vit"):
        plait.create_model("bert_toy", scheme="paper")
    with pytest.raises(PlaitError, match="expected 'paper'"):
        plait.create_model("vit_toy", scheme="timm")
    with pytest.raises(PlaitError, match="is for training from nothing"):
        plait.create_model("vit_toy", scheme="paper", pretrained=str(tmp_path))


def test_a_run_begins_so_where_it_is_asked_to(tmp_path):
    from plait.errors import UsageError
    from plait.runs.console import Console
    from plait.runs.folder import read_json
    from tests.product.test_towers import pictures

    table = pictures(0).drop(["other"])
    usual = dict(target="is", split="split", epochs=1, precision="fp32", lr=1e-9, console=Console(quiet=True))
    runs = {s: plait.fit(table, out=tmp_path / str(s), system="deit_toy", scheme=s, **usual) for s in (None, "paper")}
    up = [r.model.bound.system.state_dict()["stack.blocks.0.feed.f.up.weight"].std() for r in runs.values()]
    assert up[0] > 2 * up[1] and up[1] == pytest.approx(0.02, rel=0.1)
    assert read_json(tmp_path / "paper" / "config.json")["recipe"]["arguments"]["drop_path"] == 0.1
    assert plait.load(tmp_path / "paper").predict(table).equals(runs["paper"].predict(table))
    again = plait.fit(table, out=tmp_path / "paper", resume=True, epochs=2, console=Console(quiet=True))
    assert len(again.history.rows) == 2 and max(rates(again.model)) == pytest.approx(0.1)
    with pytest.raises(UsageError, match="--scheme paper: auto_.*how its paper begins is not told"):
        plait.fit(table, out=tmp_path / "auto", scheme="paper", **usual)
    with pytest.raises(UsageError, match="for training from nothing"):
        plait.fit(table, out=tmp_path / "w", system="deit_toy", scheme="paper", pretrained=str(tmp_path), **usual)
