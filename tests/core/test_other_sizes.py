"""Files for pictures of one size in models for another: positions, tables of biases and filters are resampled as the
references do it, and what cannot be is refused in a sentence."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import plait
from plait.core.catalog import handed_on, model_class, systems
from plait.errors import PlaitError
from tests.contract.examples import example, kind, run
from tests.parity.compare import perturb, relative_error
from tests.peers import declare_torchvision

LARGER = (64, 64)
# Arguments that say a size in places: their names, and of each system that has one the first value and another.
SIZES = {"image", "window", "windows", "sides", "grids", "table"}
ASKED = {
    "davit": ("window", 4, 6),
    "efficientvit_m": ("sides", (2, 2), (4, 3)),
    "hiera": ("table", (4, 4), (8, 8)),
    "hornet": ("grids", (None, (4, 3), None, None), (None, (8, 5), None, None)),
    "maformer": ("window", 4, 6),
    "maxvit": ("window", 4, 6),
    "s3_autoformer_v2": ("windows", (4, (8, 4)), (6, (8, 6))),
    "swin": ("window", 4, 6),
    "tiny_vit": ("sides", (3, 2), (5, 4)),
    "twins": ("window", 2, 4),
}
BOUND = {"gmlp", "fcaformer", "maformer"}  # by `image`


def cases() -> list:
    found = []
    for system in systems().values():
        info = plait.model_info(f"{system.name}_toy")
        own = inspect.signature(model_class(info)).parameters.keys()
        parts = handed_on(info, info.arguments | {"image": LARGER}).values()
        sizes = SIZES & {*own, *(name for part in parts for name in part)}
        if "image" in system.takes and "image" in sizes:
            found.append(pytest.param(info.name, {}, {"image": LARGER}, id=f"{system.name}-image"))
        if "image" in system.takes and (asked := sizes - {"image"}):
            (name,) = asked
            assert ASKED[system.name][0] == name, f"{system.name} has {name}: say how it is asked for"
            _, first, other = ASKED[system.name]
            found.append(pytest.param(info.name, {name: first}, {name: other}, id=f"{system.name}-{name}"))
    return found


@pytest.mark.parametrize("name, first, other", cases())
@torch.no_grad()
def test_a_file_for_another_size_is_resampled_or_refused(name, first, other, tmp_path):
    system = plait.model_info(name).system
    old = perturb(plait.create_model(name, seed=2, **first))
    save_file({k: v.contiguous() for k, v in old.state_dict().items()}, tmp_path / "w.safetensors")
    if "image" in other and system.name in BOUND:
        with pytest.raises(
            PlaitError, match=r"for pictures of one size, and cannot be resampled: got a tensor of shape"
        ):
            plait.create_model(name, pretrained=tmp_path / "w.safetensors", **other)
        return
    new = plait.create_model(name, pretrained=tmp_path / "w.safetensors", **other).eval()
    kept = {k: torch.equal(v, old.state_dict()[k]) for k, v in new.state_dict().items()}
    changed = [k for k, same in kept.items() if not same]
    assert all(new.state_dict()[k].shape != old.state_dict()[k].shape for k in changed)
    for key in changed:  # no larger than what it is made of, nor all alike
        was, made = old.state_dict()[key], new.state_dict()[key]
        assert made.isfinite().all() and made.std() > 0.1 * was.std() and made.abs().max() < 2 * was.abs().max() + 1e-6
    batch = example(new)
    if "image" in other:
        batch |= {slot: torch.rand(3, 3, *LARGER) for slot in new.takes if kind(slot) == "image"}
    assert all(v.isfinite().all() for v in run(new, batch, system).values())


@pytest.mark.parametrize("name", ["vit_toy", "hiera_toy", "vision_rwkv_toy", "pvt_toy", "spectformer_toy", "lit_toy"])
@torch.no_grad()
def test_a_model_of_the_other_size_answers_as_the_first_one_does_on_its_pictures(name, tmp_path):
    old = perturb(plait.create_model(name, seed=2))
    save_file(old.state_dict(), tmp_path / "w.safetensors")
    new = plait.create_model(name, image=LARGER, pretrained=tmp_path / "w.safetensors").eval()
    x = torch.rand(2, 3, *LARGER)
    torch.testing.assert_close(new(x), old(x), rtol=1e-5, atol=1e-5)


def swins():
    from timm.models.swin_transformer import SwinTransformer, checkpoint_filter_fn

    how = dict(patch_size=2, embed_dim=16, depths=(2, 2), num_heads=(2, 4), num_classes=10)
    pair = (SwinTransformer(img_size=8 * side, window_size=side, **how) for side in (4, 6))
    return checkpoint_filter_fn, *pair, dict(window=6), 48


def maxvits():
    from timm.models.maxxvit import MaxxVit, checkpoint_filter_fn, model_cfgs

    made = model_cfgs["maxvit_tiny_tf"]
    how = dict(embed_dim=(16, 32), depths=(1, 1), block_type=("M", "M"), stem_width=8, head_hidden_size=32)
    made = replace(made, transformer_cfg=replace(made.transformer_cfg, dim_head=8), **how)
    pair = (MaxxVit(made, img_size=32 * side, num_classes=10) for side in (4, 6))
    return checkpoint_filter_fn, *pair, dict(window=6), 96


def tiny_vits():
    from timm.models.tiny_vit import TinyVit, checkpoint_filter_fn

    how = dict(embed_dims=(8, 16, 32), depths=(1, 1, 2), num_heads=(1, 2, 4), num_classes=10)
    pair = (TinyVit(window_sizes=sides, **how) for sides in ((1, 3, 2), (1, 5, 4)))
    return checkpoint_filter_fn, *pair, dict(sides=(5, 4)), 64


def efficientvits():
    from timm.models.efficientvit_msra import EfficientVitMsra, checkpoint_filter_fn

    how = dict(embed_dim=(16, 32), depth=(1, 1), num_heads=(2, 2), kernels=(7, 5, 3, 3), key_dim=(16, 16))
    how |= dict(down_ops=(("", 1), ("subsample", 2)), num_classes=10)
    pair = (EfficientVitMsra(img_size=16 * 4, window_size=sides, **how) for sides in ((2, 2), (4, 2)))
    return checkpoint_filter_fn, *pair, dict(sides=(4, 2), halvings=4), 64


@pytest.mark.parametrize("system, make", [("swin", swins), ("maxvit", maxvits), ("tiny_vit", tiny_vits),
                                          ("efficientvit_m", efficientvits)])  # fmt: skip
@torch.no_grad()
def test_tables_of_biases_are_resampled_as_timm_does(system, make, tmp_path):
    declare_torchvision()
    adapt, old, theirs, arguments, side = make()
    state = perturb(old).state_dict()
    state |= {k: torch.randn_like(v) for k, v in state.items() if k.endswith(("bias_table", "attention_biases"))}
    torch.save(state, tmp_path / "w.pth")
    theirs.load_state_dict(adapt(dict(state), theirs))
    ours = plait.create_model(f"{system}_toy", pretrained=tmp_path / "w.pth", **arguments).eval()
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    assert relative_error(ours(x), theirs.eval()(x)) < 1e-5
    tables = {k: v for k, v in theirs.state_dict().items() if k.endswith(("bias_table", "attention_biases"))}
    back = plait.save_weights(ours, "timm")
    assert tables and max(relative_error(back[k], v) for k, v in tables.items()) < 1e-5


@pytest.mark.parametrize("old, new", [(4, 6), (7, 12), (12, 7), (7, 24), (8, 8)])
def test_a_table_of_any_window_is_stretched_as_timm_does(old, new):
    declare_torchvision()
    from timm.layers.pos_embed_rel import resize_rel_pos_bias_table

    from plait.parts.positions.relative import RelativeBias

    table = torch.randn((2 * old - 1) ** 2, 3, generator=torch.Generator().manual_seed(old))
    theirs = resize_rel_pos_bias_table(table, (new, new), ((2 * new - 1) ** 2, 3))
    bias = RelativeBias((new, new), 3)
    assert relative_error(bias.refit("table", table), theirs) < 1e-5
    assert bias.refit("table", torch.randn(35, 3)) is None  # no square


def test_tokens_of_t2t_are_placed_as_its_authors_place_them(tmp_path):
    """Resampled from the table of the file, and not computed anew."""
    old = plait.create_model("t2t_vit_toy", image=(64, 64))
    torch.save(old.state_dict(), tmp_path / "w.pth")
    new = plait.create_model("t2t_vit_toy", image=(96, 96), pretrained=tmp_path / "w.pth")
    first, table = old.positions.table[:, :1], old.positions.table[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(table, size=(6, 6), mode="bicubic").flatten(2).mT
    torch.testing.assert_close(new.positions.table, torch.cat([first, wanted], 1))


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_positions_after_special_tokens_are_resampled_as_timm_does(prefix):
    declare_torchvision()
    from timm.layers import resample_abs_pos_embed

    from plait.parts.positions.learned import GridPositions

    table = torch.randn(1, prefix + 49, 8, generator=torch.Generator().manual_seed(prefix))
    for grid in ((12, 12), (5, 9)):
        theirs = resample_abs_pos_embed(table, grid, num_prefix_tokens=prefix)
        assert relative_error(GridPositions(grid, 8, prefix=prefix).refit("table", table), theirs) < 1e-5
