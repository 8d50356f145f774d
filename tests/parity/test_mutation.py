"""Wrong numbers in the rows of small sizes are noticed; `python -m tests.parity.mutation` goes through all."""

from __future__ import annotations

import fnmatch

import pytest

from plait.core.catalog import build, model_info, systems
from tests.parity import mutation
from tests.parity.compare import Row, count

# where a check takes long, a few arguments that loading cannot refuse
SMALL = {
    "autoencoder_kl_sd_ft_mse": ("groups", "scale"),
    "cct_2_3x2_32": ("heads",),
    "crate_tiny": ("heads",),
    "decision_transformer_gym_hopper_medium": (),
    "deformable_detr_single_scale": ("heads",),
    "detr_resnet_50_dc5": ("dilated",),
    "dit_s_8": ("heads", "predicts"),
    "duoformer_r18_2": ("heads",),
    "efficientvit_m_m1": ("kernels",),
    "flatformer_toy": (),
    "fnet_base": ("depth",),
    "gpt2_small": ("heads",),
    "hiera_tiny_224": ("heads",),
    "llama_smollm_135m": ("depth", "base", "eps", "window"),
    "pvt_tiny_224": ("depths",),
    "resnet_18": ("depths", "deep", "dilated"),
    "sentence_encoder_minilm_l6": ("pooling",),
    "smt_t": ("heads",),
    "spectformer_ti": ("heads",),
    "sret_lt_16_14": ("groups",),
    "t2t_vit_7": ("heads",),
    "t5_small": ("depth",),
    "tokenformer_150m": ("heads", "eps"),
    "vmoe_toy": (),
    "whisper_tiny": ("heads", "previous"),
    "zipformer_small_streaming": ("chunk", "left"),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_wrong_number_in_a_row_is_noticed(name):
    found = mutation.check(mutation.module_of(name), name, SMALL[name])
    assert found and "survives" not in found, found


def test_a_check_that_compares_nothing_is_found_out(monkeypatch):
    module = mutation.module_of("vmoe_toy")
    monkeypatch.setattr(module, "parity", lambda name: Row(name, "", count(build(name)), count(build(name)), 0.0))
    assert mutation.check(module, "vmoe_toy", ("heads",)) == {"survives": ["heads = 2"]}


@pytest.mark.parametrize(
    "value, others",
    [
        (1e-6, {"": [1e-5, 1e-7]}),
        (3, {"": [6, 1]}),
        (0, {"": [1, 2]}),
        (True, {"": [False]}),
        (None, {"": [8, (1.0, 2.0)]}),
        ("silu", {"": ["gelu"]}),
        ((2, 4), {"[0]": [(4, 4), (1, 4)], "[1]": [(2, 8), (2, 2)]}),
        (dict(a=dict(kind="x", b=4)), {".a.b": [dict(a=dict(kind="x", b=8)), dict(a=dict(kind="x", b=2))]}),
    ],
)
def test_other_values_are_near_and_each_number_of_several_has_its_turn(value, others):
    known = {type(None): [8, (1.0, 2.0)], str: ["silu", "gelu"]}.get(type(value), [])
    found = {spot: values for spot, values in mutation.spots(value, known).items() if values}
    assert found.keys() == others.keys()
    for spot, values in found.items():
        assert all(
            got == (pytest.approx(want) if isinstance(want, float) else want)
            for got, want in zip(values, others[spot], strict=True)
        )


def test_a_row_is_as_it_was_after_it_was_wrong():
    before, right = model_info("resnet_18").arguments, model_info("resnet_18").parameters
    with mutation.changed(mutation.Mutant("resnet_18", "deep", "", True), False):
        assert model_info("resnet_18").parameters > right
    assert model_info("resnet_18").arguments == before and model_info("resnet_18").parameters == right


def test_every_excuse_is_somebodys():
    rows = (model_info(f"{s.name}_{size}") for s in systems().values() for size in s.sizes)
    told = {f"{n}.{argument}" for i in rows for argument in mutation.arguments(i) for n in (i.name, i.system.name)}
    stale = [p for p in mutation.EXCUSED if not any(fnmatch.fnmatch(name, p.split("/")[-1]) for name in told)]
    assert not stale
