"""What a size is listed for it can do: the methods of its roles run on it, with its own arguments, without storage.

Sizes of one system that differ in numbers alone run the same code: of those the smallest stands for all.
"""

from __future__ import annotations

import inspect
import numbers

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import plait
from plait.core.catalog import ModelInfo, construct, model_info, systems
from plait.core.roles import ROLES
from plait.runs.assemble import model_class, reads
from plait.tasks import tasks_of
from tests.contract.examples import example, kind

SAMPLES = 16_000


def sort(value) -> object:
    """What decides which code runs: of numbers whether they are above 0, of tuples and dicts that they are there."""
    if isinstance(value, bool) or not isinstance(value, (numbers.Number, tuple, dict)):
        return repr(value)
    return type(value) if isinstance(value, (tuple, dict)) else value > 0


def flags(info: ModelInfo) -> tuple:
    """A size's roles, and which of its arguments are of another sort than the class's own: what sizes that run the
    same code have in common."""
    own = inspect.signature(model_class(info)).parameters
    usual = {name: p.default for name, p in own.items() if p.default is not inspect.Parameter.empty}
    own = {name: value for name, value in info.arguments.items() if name not in info.parts}  # these are tried alone
    kinds = {name: (sort(value), name in usual) for name, value in own.items()}
    other = {name: k for name, (k, open_) in kinds.items() if not open_ or k != sort(usual[name])}
    return (info.roles, *sorted((name, str(k)) for name, k in other.items()))


def depth(info: ModelInfo) -> float:
    """About how long a forward pass takes: the number of layers, of all stages."""

    def total(value) -> float:
        return sum(map(total, value)) if isinstance(value, tuple) else float(value)

    return total(info.arguments.get("depth", info.arguments.get("depths", 12)))


def representatives() -> list:
    chosen: dict[tuple, ModelInfo] = {}
    for name in plait.list_models():
        info = model_info(name)
        key = (info.system.name, flags(info))
        if key not in chosen or depth(info) < depth(chosen[key]):
            chosen[key] = info
    return [pytest.param(info, id=info.name) for info in chosen.values()]


def batch(info: ModelInfo, model: torch.nn.Module) -> dict:
    """Two rows of everything that a size reads, pictures of its own resolution, a second of sound."""
    side = info.weights.get("image") or reads(info).get("image") or (224, 224)
    made = example(model, rows=2)
    made |= {slot: torch.zeros(2, 3, *side) for slot in model.takes if kind(slot) == "image"}
    sounds = [slot for slot in model.takes if kind(slot) == "audio"]
    made["keep"] |= {slot: torch.ones(2, SAMPLES, dtype=torch.bool) for slot in sounds}
    slots = info.arguments.get("slots", {})
    steps = {slot: spec["channels"] for slot, spec in slots.items() if spec["kind"] == "series"}
    made |= {slot: torch.zeros(2, 48, info.arguments.get("points", 3)) for slot in model.takes if slot == "points"}
    made |= {slot: torch.zeros(2, 24, channels) for slot, channels in steps.items()}
    return made | {slot: torch.zeros(2, SAMPLES) for slot in sounds}


def use(model: torch.nn.Module, role: str, b: dict) -> list[tuple[int, ...]]:
    """The shapes of what the methods of a role give."""
    slot = model.takes[0]
    x, keep = b[slot], b["keep"].get(slot)
    match role:
        case "backbone":
            return [model(x, keep).shape, model.pool(model.tokens(x, keep)).shape]
        case "embedder":
            return [model.logit_scale.shape * 2, *(v.shape for v in model.embed(b).values())]
        case "fuser":
            out = model.fuse(b)
            return [out["fused"].shape, *(v.shape for v in out["parts"].values())]
        case "detector":
            out = model(x, keep)
            return [out["logits"].shape[2:], out["boxes"].shape[2:]]
        case "transcriber":
            logits, lengths = model.transcribe(x, keep)
            return [logits.shape[:2], (*lengths.shape, 1)]
        case "generator":
            logits, _ = model.step(torch.zeros(2, 3, dtype=torch.int64), model.prefill(b))
            return [logits.shape[:2]]
        case "masked":
            luck = {slot: torch.rand(2, n) for slot, n in model.places(b).items()}
            return [cost[:, None].shape for cost in model.guess(b, luck)["costs"].values()]
        case "codec":
            mean, _ = model.encode(x)
            return [mean.flatten(1).shape, model.decode(mean).flatten(1).shape]
        case "diffuser":
            said = model.condition(b)
            return [said.shape, model.denoise(torch.zeros(2, *model.sample), torch.zeros(2), said).flatten(1).shape]
        case "policy":
            return [model.act(b)["actions"].flatten(1).shape]
    raise AssertionError(f"a role of its own: {role}")


@pytest.mark.parametrize("info", representatives())
def test_a_size_runs_the_methods_of_its_roles(info):
    labels = {"labels": 30} if "transcriber" in info.roles else {}
    with FakeTensorMode(), torch.inference_mode():
        model = construct(info.name, **labels).eval()
        for role in info.roles:
            assert isinstance(model, ROLES[role])
            assert all(len(shape) == 2 for shape in use(model, role, batch(info, model)))


def test_roles_of_single_sizes_are_those_of_sizes_that_there_are():
    for system in systems().values():
        assert set(system.size_roles) <= set(system.sizes) - {"toy"}
        assert all(roles and set(roles) <= set(ROLES) for roles in system.size_roles.values())


@pytest.mark.parametrize(
    "size, can",
    [
        ("base_patch16_384_retrieval", {"classify", "retrieve", "match"}),
        ("base_patch16_480_vqav2", {"classify", "match"}),
        ("large_patch16_480_captioning", {"classify", "match", "caption"}),
    ],
)
def test_what_is_listed_is_true_of_each_size(size, can):
    asked = {"classify", "retrieve", "match", "caption"}
    assert asked & set(tasks_of(model_info(f"beit3_{size}"))) == can
    assert {task for task in asked if f"beit3_{size}" in plait.list_models("beit3_*", task=task)} == can


def test_a_size_without_a_role_is_found_out():
    """The VQA sizes of BEiT-3 have no heads for retrieval, which their system's roles alone would promise."""
    info = model_info("beit3_base_patch16_384_vqav2")
    with FakeTensorMode():
        model = model_class(info)(**info.arguments).eval()
        with pytest.raises((TypeError, AttributeError), match="NoneType"):
            use(model, "embedder", batch(info, model))
