"""What every system promises, checked on its toy. A new system is covered by existing."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import sys
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._export.serde.serialize import GraphModuleDeserializer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import plait
from plait.core.attend import recorded, with_backend
from plait.core.catalog import build
from plait.core.tokens import Tokens
from tests.contract.examples import SYSTEMS, example, flatten, gradients, kind, run, same_gradients, toy
from tests.contract.symbols import Symbolic

every_system = pytest.mark.parametrize("system", [pytest.param(s, id=s.name) for s in SYSTEMS])
every_eye = pytest.mark.parametrize("system", [pytest.param(s, id=s.name) for s in SYSTEMS if s.takes == ("image",)])


def close(a, b, tolerance=1e-5):
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=tolerance, atol=tolerance, msg=lambda m: f"{key}: {m}")


@contextlib.contextmanager
def new_memory_is_nan():
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch then fills what it hands out with NaN
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def one_row(value, i):
    if isinstance(value, dict):
        return {k: one_row(v, i) for k, v in value.items()}
    return value[i : i + 1]


@every_system
def test_forward_is_finite_and_pure(system):
    model = toy(system).eval()
    batch = example(model)
    before = copy.deepcopy(model.state_dict())
    first, second = run(model, batch, system), run(model, batch, system)
    close(first, second, 0)
    assert all(v.isfinite().all() for v in first.values())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@every_system
def test_same_outputs_in_training_and_evaluation(system):
    model = toy(system)
    batch = example(model)
    assert run(model.train(), batch, system).keys() == run(model.eval(), batch, system).keys()


@every_system
def test_every_parameter_gets_a_gradient(system):
    model = toy(system).train()
    out = run(model, example(model, rows=4), system)
    g = torch.Generator().manual_seed(0)
    sum((v * torch.randn(v.shape, generator=g)).sum() for v in out.values() if v.requires_grad).backward()
    wanted = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert wanted
    assert not [n for n, p in wanted.items() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not [n for n, p in model.named_parameters() if p.dim() == 0]


@every_system
def test_a_row_alone_equals_the_row_in_a_batch(system):
    model = toy(system).eval()
    batch = example(model)
    together = run(model, batch, system)
    for i in range(3):
        alone = run(model, one_row(batch, i), system)
        close(alone, {k: v[i : i + 1] if v.shape[0] == 3 else v for k, v in together.items()})


@every_system
@pytest.mark.parametrize("floats", [1e3, float("nan")])
def test_garbage_in_the_padding_and_in_absent_cells_changes_nothing(system, floats):
    model = toy(system).eval()
    batch = example(model)
    dirty = copy.deepcopy(batch)
    for slot, keep in batch["keep"].items():
        garbage = {"text": 63, "category": 4}.get(kind(slot), floats)
        real = keep.reshape(*keep.shape, *[1] * (batch[slot].dim() - keep.dim()))
        dirty[slot] = torch.where(real, batch[slot], torch.full_like(batch[slot], garbage))
    clean, soiled = run(model, batch, system), run(model, dirty, system)
    close(per_real_token(clean, batch), per_real_token(soiled, batch))
    if len(model.takes) == 1:  # is called without `present`: a row that lacks its only slot is the task's to answer
        return
    for i, slot in enumerate(model.takes):  # in every slot another row is absent, and what lies there is garbage
        for b in (batch, dirty):
            b["present"][slot][i % 3] = False
        dirty[slot][i % 3] = {"text": 63, "category": 4}.get(kind(slot), floats)
    clean, soiled = run(model, batch, system), run(model, dirty, system)
    close(per_real_token(clean, batch), per_real_token(soiled, batch))


@every_system
def test_a_text_without_a_word_is_finite(system):
    model = toy(system).eval()
    batch = example(model)
    texts = [slot for slot in model.takes if kind(slot) == "text"]
    if not texts:
        pytest.skip("reads no text")
    for slot in texts:
        batch["keep"][slot][1] = False
        batch[slot][1] = 0
    out = run(model, batch, system)
    assert out and all(v.isfinite().all() for v in out.values())


@every_system
def test_what_a_model_says_of_itself_is_so(system):
    model = toy(system).eval()
    batch = example(model)
    assert {kind(slot) for slot in model.takes} == set(system.takes)
    if "backbone" in system.roles:
        (slot,) = model.takes
        t = model.tokens(batch[slot], batch["keep"].get(slot))
        assert isinstance(t, Tokens) and t.x.shape[::2] == (3, model.width) and model.pool(t).shape == (3, model.width)
        assert model(batch[slot], batch["keep"].get(slot)).shape == (3, system.sizes["toy"]["num_classes"])
        bare = plait.create_model(f"{system.name}_toy", num_classes=0).eval()
        assert bare(batch[slot], batch["keep"].get(slot)).shape == (3, model.width)
    if "detector" in system.roles:
        out, labels = model(batch["image"]), system.sizes["toy"]["labels"]
        assert out["logits"].shape == (*out["boxes"].shape[:3], labels + model.exclusive)
        assert out["boxes"].shape[::3] == (3, 4) and 0 <= out["boxes"].min() and out["boxes"].max() <= 1
    if "embedder" in system.roles:
        vectors = model.embed(batch)
        assert set(vectors) == set(model.takes) and model.logit_scale.shape == (1,)
        for v in vectors.values():
            assert v.shape == (3, model.embed_width)
            torch.testing.assert_close(v.norm(dim=1), torch.ones(3))
    if "fuser" in system.roles:
        out = model.fuse(batch)
        assert out["fused"].shape == (3, model.width)
        assert {slot: tuple(v.shape) for slot, v in out["parts"].items()} == {
            slot: (3, w) for slot, w in model.part_widths.items()
        }


def per_real_token(out, batch):
    """Outputs per token are only promised where the token is real."""
    masks = {k.shape[1]: k for k in batch["keep"].values()}
    return {
        n: v.masked_fill(~masks[v.shape[1]][..., None], 0) if v.dim() == 3 and v.shape[1] in masks else v
        for n, v in out.items()
    }


@every_system
def test_any_subset_of_the_modalities(system):
    model = toy(system).eval()
    if len(model.takes) == 1:
        pytest.skip("reads one modality")
    batch = example(model)
    whole = run(model, batch, system)
    for count in range(len(model.takes)):
        for given in itertools.combinations(model.takes, count):
            if count == 0 or (len(model.takes) > 3 and 1 < count < len(model.takes) - 1):
                continue
            left_out = {s: v for s, v in batch.items() if s in given or s not in model.takes}
            left_out["keep"] = {s: v for s, v in batch["keep"].items() if s in given}
            left_out["present"] = {s: v for s, v in batch["present"].items() if s in given}
            marked = copy.deepcopy(batch)
            for slot in set(model.takes) - set(given):
                marked["present"][slot][:] = False
            out = run(model, left_out, system)
            assert out.keys() == whole.keys()
            assert all(v.isfinite().all() for v in out.values())
            close(out, run(model, marked, system))  # absent from the batch, or there but marked absent: the same answer
            assert any(not torch.allclose(out[k], whole[k]) for k in out if out[k].shape == whole[k].shape)


@every_system
def test_an_absent_cell_does_not_touch_other_rows(system):
    model = toy(system).eval()
    if len(model.takes) == 1:
        pytest.skip("reads one modality")
    batch = example(model)
    whole = run(model, batch, system)
    for slot in model.takes:
        holed = copy.deepcopy(batch)
        holed["present"][slot][1] = False
        out = run(model, holed, system)
        rows = {k: v for k, v in whole.items() if v.shape[0] == 3}
        close({k: out[k][[0, 2]] for k in rows}, {k: whole[k][[0, 2]] for k in rows})


@every_system
def test_state_dict_round_trip(system, tmp_path):
    from safetensors.torch import load_file, save_file

    model, other = toy(system, seed=1).eval(), toy(system, seed=2).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    plait.load_weights(other, load_file(tmp_path / "w.safetensors"))
    batch = example(model)
    close(run(model, batch, system), run(other, batch, system), 0)


@every_system
def test_public_layouts_are_reversible_and_strict(system):
    model = toy(system, seed=1)
    rules = getattr(sys.modules[type(model).__module__], "RULES", {})
    for source in rules:
        public = plait.save_weights(model, source)
        other = plait.load_weights(toy(system, seed=2), public, source)
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))
        # a file may lack the copy of a tied tensor
        key = next(k for k in sorted(public) if not any(k != j and torch.equal(public[k], public[j]) for j in public))
        with pytest.raises(ValueError):
            plait.load_weights(other, {**public, "no.such.key.at.all": torch.zeros(1)}, source)
        with pytest.raises(ValueError):
            plait.load_weights(other, {k: v for k, v in public.items() if k != key}, source)
        with pytest.raises(ValueError):
            plait.load_weights(other, {**public, key: torch.zeros(3, 1, 4, 1, 5)}, source)


@every_system
def test_built_on_meta_and_seeded(system):
    assert all(p.is_meta for p in build(f"{system.name}_toy").parameters())
    with new_memory_is_nan():  # a reset() that forgets a tensor shows
        made = [toy(system, seed) for seed in (1, 1, 2)]
    assert not [n for n, v in made[0].named_buffers() if v.is_floating_point() and v.isnan().any()]
    a, b, c = (model.state_dict() for model in made)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)
    assert all(v.isfinite().all() for v in a.values())


@every_system
def test_bfloat16(system):
    model = toy(system).eval()
    batch = example(model)
    full = run(model, batch, system)
    with torch.autocast("cpu", torch.bfloat16):
        half = run(model, batch, system)
    for key, value in full.items():
        assert half[key].isfinite().all()
        assert (half[key].float() - value).abs().max() < 0.1 * value.abs().max() + 0.02, key


def cast(value, dtype):
    if isinstance(value, dict):
        return {k: cast(v, dtype) for k, v in value.items()}
    return value.to(dtype) if value.is_floating_point() else value


class Narrowed(TorchDispatchMode):
    """Notes every step that makes fewer digits of float64."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given, made = ([t for t in tree_leaves(v) if isinstance(t, Tensor)] for v in ((args, kwargs), out))
        if any(t.dtype == torch.float64 for t in given):
            self.found |= {str(func) for t in made if t.is_floating_point() and t.dtype != torch.float64}
        return out


@torch.no_grad()
@every_system
def test_double_is_double_everywhere(system):
    model = toy(system).eval()
    batch = example(model)
    single, model = run(model, batch, system), model.double()
    with Narrowed() as seen:
        double = run(model, cast(batch, torch.float64), system)
    assert not seen.found
    for key, value in double.items():
        assert value.dtype == torch.float64 or not value.is_floating_point(), key
        assert (value - single[key]).abs().max() <= 1e-4 * single[key].abs().max() + 1e-5, key


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_system
def test_a_model_of_halves_reads_pictures_of_its_own_and_of_other_sizes(system, dtype):
    model = toy(system).eval()
    batches = [example(model)]
    if getattr(model, "multiple", None) is not None:
        batches.append({"image": picture(model, 64, 96), "keep": {}})
    full = [run(model, batch, system) for batch in batches]
    model = model.to(dtype)
    for batch, true in zip(batches, full):
        for key, value in run(model, cast(batch, dtype), system).items():
            assert value.isfinite().all(), key
            if value.is_floating_point():
                assert (value.float() - true[key]).abs().max() < 0.15 * true[key].abs().max() + 0.03, key


@every_system
def test_attention_backends_agree_and_maps_are_recorded(system):
    model = toy(system).eval()
    batch = example(model)
    fused = run(model, batch, system)
    eager = with_backend(model, "eager")
    close(fused, run(eager, batch, system))
    watched, maps = recorded(model)
    close(fused, run(watched, batch, system))
    assert bool(maps) == getattr(model, "attends", True)
    assert all(m.dim() == 4 and m.isfinite().all() for m in maps)


def once(model, batch, system):
    """What is traced: `forward` alone of a model of one modality, which is its `tokens`, `pool` and head; all of
    others."""
    if len(model.takes) > 1:
        return run(model, batch, system)
    (slot,) = model.takes
    return flat(model(batch[slot], batch["keep"].get(slot)))


FIRST = {system.module.split(".")[2]: system.name for system in reversed(SYSTEMS)}  # of each room


@every_system
def test_compiles_whole_and_gives_the_same_gradients(system):
    model = toy(system).eval()
    batch, backend = example(model), "aot_eager" if system.name in FIRST.values() else "eager"
    compiled = torch.compile(lambda b: once(model, b, system), fullgraph=True, backend=backend)
    mine, truth = compiled(batch), once(model, batch, system)
    close(truth, mine)
    same_gradients(gradients(model, mine), gradients(model, truth))


def kept(program):
    """The module of an exported program that was saved and loaded."""
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    with mock.patch.object(GraphModuleDeserializer, "_parse_sym_expr", parsed_once):
        return torch.export.load(file).module()


def parsed_once(self, text, hint=None, parse=GraphModuleDeserializer._parse_sym_expr):
    """A file tells the formula of a size again for each tensor that has it: to parse them all is most of loading it."""
    known = vars(self).setdefault("parsed", {})
    if (text, hint) not in known:
        known[text, hint] = parse(self, text, hint)
    return known[text, hint]


class Exportable(torch.nn.Module):
    def __init__(self, model, system):
        super().__init__()
        self.model, self.system = model, system

    def forward(self, batch):
        return once(self.model, batch, self.system)


@torch.no_grad()
@every_system
def test_exports_with_a_dynamic_batch(system):
    model = toy(system).eval()
    if system.takes == ("image",) and getattr(model, "multiple", None) is not None:
        pytest.skip("is exported for every batch and size at once, below")
    wrapped, batch = Exportable(model, system), example(model, rows=3)
    rows = torch.export.Dim("rows", min=2, max=64)
    shapes = torch.utils._pytree.tree_map(lambda _: {0: rows}, batch)
    program = kept(torch.export.export(wrapped, (batch,), dynamic_shapes=(shapes,)))
    other = example(model, rows=5, seed=7)
    with torch.enable_grad():
        mine, truth = program(other), once(model, other, system)
        close(truth, mine)
        same_gradients(gradients(program, mine), gradients(model, truth))


def picture(model, height, width, rows=2, seed=0):
    """A picture (B, 3, H, W) of at least this height and width that `model` can read."""
    m = model.multiple
    return torch.rand(rows, 3, -(-height // m) * m, -(-width // m) * m, generator=torch.Generator().manual_seed(seed))


def flat(value) -> dict:
    """What a forward pass gives, by name."""
    out: dict = {}
    flatten("logits", value, out)
    return out


def of_any_size(system):
    model = toy(system).eval()
    if getattr(model, "multiple", None) is None:
        pytest.skip("reads pictures of one size")
    return model


@torch.no_grad()
@every_eye
def test_maps_of_every_resolution(system):
    model = toy(system).eval()
    if not hasattr(model, "maps"):
        pytest.skip("has one resolution")
    x = torch.rand(2, 3, 32, 32) if model.multiple is None else picture(model, 64, 96)
    maps, t = model.maps(x), model.tokens(x)
    strides = [round(x.shape[2] / m.shape[2]) for m in maps]
    assert strides == sorted(strides) and (model.multiple is None or strides == list(model.strides))
    for stride, m in zip(strides, maps):
        assert m.dim() == 4 and m.shape[0] == 2 and m.isfinite().all()
        assert all(abs(side / stride - found) < 1 for side, found in zip(x.shape[2:], m.shape[2:]))
    assert t.grid == tuple(maps[-1].shape[2:])
    torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), t.body())


@torch.no_grad()
@every_eye
def test_features_are_maps_of_the_picture_with_the_stated_strides(system):
    if "backbone" not in system.roles:
        assert not hasattr(toy(system), "features")
        pytest.skip("gives no maps")
    model = toy(system).eval()
    x = torch.rand(2, 3, 32, 32) if model.multiple is None else picture(model, 64, 96)
    found, other = model.features(x), model.features(x.flip(0))
    strides = [stride for _, stride in found]
    assert strides and strides == sorted(strides) and all(type(stride) is int for stride in strides)
    for (m, stride), (n, _) in zip(found, other, strict=True):
        assert m.dim() == 4 and m.shape[0] == 2 and m.isfinite().all()
        assert all(abs(side / stride - places) < 1 for side, places in zip(x.shape[2:], m.shape[2:]))
        torch.testing.assert_close(m, n.flip(0), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(m, n)
    (first, _), (last, stride) = model.features(x, layers=(0, -1))
    torch.testing.assert_close(last, found[-1][0], rtol=1e-4, atol=1e-5)
    assert stride == strides[-1]
    if len(found) > 1:
        torch.testing.assert_close(first, found[0][0], rtol=1e-4, atol=1e-5)
    only = hasattr(model, "stack") and len(model.stack.blocks) == 1
    assert only or first.shape != last.shape or not torch.equal(first, last)


@torch.no_grad()
@every_eye
@pytest.mark.parametrize("size", [(64, 64), (37, 50)])
def test_pictures_of_other_sizes(system, size):
    model = of_any_size(system)
    x = picture(model, *size)
    t = model.tokens(x)
    assert t.grid is None or t.body().shape[1] == t.grid[0] * t.grid[1]
    out, other = flat(model(x)), flat(model(x.flip(0)))
    assert all(v.isfinite().all() and not torch.allclose(v, other[k]) for k, v in out.items())
    assert "backbone" not in system.roles or out["logits"].shape == (2, 10)


@torch.no_grad()
@every_eye
def test_exports_with_dynamic_height_and_width(system):
    model = of_any_size(system)
    least, m = -(-64 // model.multiple), model.multiple
    rows, height, width = (
        torch.export.Dim(n, min=low, max=8 * low) for n, low in (("rows", 2), ("height", least), ("width", least))
    )
    sides = {2: height if m == 1 else m * height, 3: width if m == 1 else m * width}
    dims = ({0: rows, **sides},)
    # nearly every entry of the cache of fake tensors is new under symbolic sizes: it costs a third of the time
    with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        program = kept(torch.export.export(model, (picture(model, 70, 100, rows=3),), dynamic_shapes=dims))
    for x in (picture(model, 100, 72, rows=2, seed=1), picture(model, 64, 64, rows=5, seed=2)):
        with torch.enable_grad():
            mine, truth = flat(program(x)), flat(model(x))
            close(mine, truth)
            same_gradients(gradients(program, mine), gradients(model, truth))


@every_eye
def test_a_step_on_pictures_of_another_size_is_made_of_what_compiles_for_every_size(system):
    model = of_any_size(system)
    out = flat(model(picture(model, 40, 56)))
    with Symbolic() as seen:
        gradients(model, out)
    assert not seen.faults


@torch.no_grad()
@pytest.mark.parametrize("system", [pytest.param(s, id=s.name) for s in SYSTEMS if s.name in ("swin", "vit_clip")])
def test_one_compiled_program_serves_every_size(system):
    """Of a tower and a pyramid: that no size is written into any system's program is what its export shows."""
    model = of_any_size(system)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    compiled(picture(model, 70, 100, rows=5))  # 3 rows would be taken for the 3 colours: one symbol for both
    with torch._dynamo.config.patch(error_on_recompile=True):
        for x in (picture(model, 100, 72, seed=1), picture(model, 64, 97, rows=4, seed=2)):
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)
