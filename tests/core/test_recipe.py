"""Recipes: plain JSON that makes the same model again, with its changes in order."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file

import plait
from plait.core.methods import read_change, written
from plait.core.recipe import Recipe
from plait.errors import PlaitError
from tests.contract.examples import example, run
from tests.contract.test_methods import pairs

every_pair = pytest.mark.parametrize("method, host", pairs(refused=False))


@pytest.mark.parametrize(
    "text, name, options",
    [
        ("sinkformer", "sinkformer", {}),
        ("sinkformer:steps=5,", "sinkformer", {"steps": 5}),
        ("irpe:mode=bias,shared=false,ratio=2", "irpe", {"mode": "bias", "shared": False, "ratio": 2}),
        ("slab:kernel=none, steps=10", "slab", {"kernel": None, "steps": 10}),
        ("s2_scaling:scales=(1,2.5,3),num_classes=4", "s2_scaling", {"scales": (1, 2.5, 3), "num_classes": 4}),
        ("s2_scaling:scales=[1,2]", "s2_scaling", {"scales": (1, 2)}),
        ("irpe:on='qk'", "irpe", {"on": "qk"}),
    ],
)
def test_a_change_is_read_from_a_text_and_written_again(text, name, options):
    change = read_change(text)
    assert change == (name, options) and read_change(written(change)) == change
    assert read_change(json.loads(json.dumps(change))) == change


@pytest.mark.parametrize(
    "text, why",
    [
        ("sinkformers:steps=3", "did you mean sinkformer"),
        ("sinkformer:step=3", "Did you mean 'steps'"),
        ("dual_patchnorm:steps=3", "no option 'steps'. It has none"),
        ("sinkformer:3", "expected NAME:option=value"),
        ("sinkformer:steps=os.getcwd()", "expected NAME:option=value"),
        ("sinkformer:steps=3) or f(", "expected NAME:option=value"),
        ("sinkformer:**{'steps':3}", "expected NAME:option=value"),
        ("sinkformer:steps=2.5", "steps got 2.5, expected int"),
        ("sinkformer:steps=true", "steps got True, expected int"),
        ("slab:kernel=five", r"kernel got 'five', expected int \| None"),
        ("activator_glu:feeds=1", "feeds got 1, expected bool"),
        ("irpe:mode=3", "mode got 3, expected str"),
        ("s2_scaling:scales=2", "scales got 2, expected tuple"),
        ("s2_scaling:scales=(1,'b')", "expected tuple"),
    ],
)
def test_what_is_no_change_is_refused(text, why):
    with pytest.raises(PlaitError, match=why):
        read_change(text)


def test_a_recipe_is_plain_json_and_makes_the_same_model_again():
    made = Recipe("vit_toy", {"num_classes": 4}, ["sinkformer:steps=5", "s2_scaling:scales=(1, 2, 3)"])
    again = Recipe(**json.loads(json.dumps(asdict(made))))
    assert again == made and made.title == "vit_toy + sinkformer:steps=5 + s2_scaling:scales=(1, 2, 3)"
    one, two = made.build(seed=3).eval(), again.build(seed=3).eval()
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(one(x), two(x)) and one.width == 3 * plait.create_model("vit_toy").width


@every_pair
def test_a_change_makes_the_same_model_without_storage(method, host):
    """As a run is loaded: its weights come after its changes, so that a method may not look at numbers."""
    made = Recipe(f"{host.name}_toy", {}, [method])
    real, bare = made.build(seed=2).state_dict(), made.build_on_meta()
    assert [(k, v.shape, v.dtype) for k, v in real.items()] == [
        (k, v.shape, v.dtype) for k, v in bare.state_dict().items()
    ]
    assert all(t.is_meta for t in [*bare.parameters(), *bare.buffers()])
    assert [type(m) for m in bare.modules()] == [type(m) for m in made.build(seed=2).modules()]


@every_pair
def test_changes_come_after_published_weights(method, host, tmp_path):
    name = f"{host.name}_toy"
    start = plait.create_model(name, seed=7)
    save_file(start.state_dict(), tmp_path / "w.safetensors")
    loaded = plait.create_model(name, pretrained=tmp_path / "w.safetensors", changes=[method]).eval()
    plait.apply_method(start, method)
    batch = example(start.eval())
    want, found = run(start, batch, host), run(loaded, batch, host)
    assert want.keys() == found.keys()
    for key in want:  # mapped weights may round otherwise
        torch.testing.assert_close(found[key], want[key], rtol=1e-5, atol=1e-6)
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in start.state_dict().items())


def test_order_counts():
    one = plait.create_model("vit_toy", changes=["sinkformer", "s2_scaling"])
    two = Recipe("vit_toy", {}, ["s2_scaling", "sinkformer"]).build()
    assert list(one.state_dict()) == list(two.state_dict())  # one wraps what the other reaches into
    assert plait.create_model("vit_toy", changes=["sinkformer", "activator_glu"])
    with pytest.raises(PlaitError, match="method sinkformer: ViT has no Attend that could be changed"):
        plait.create_model("vit_toy", changes=["activator_glu", "sinkformer"])


def test_dtype_holds_for_what_a_change_adds():
    model = plait.create_model("vit_toy", dtype=torch.bfloat16, changes=["cached_transformer_grc:length=4"])
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
