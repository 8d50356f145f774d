"""Low-rank adapters (LoRA, arXiv:2106.09685) beside linear layers, and peft's files of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from plait.core.create import rules_of
from plait.core.files import write_whole
from plait.core.methods import apply_method
from plait.core.surgery import Undo
from plait.core.weight_files import read_weights
from plait.core.weights import convert, converted
from plait.errors import DataError, PlaitError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
THEIRS = "base_model.model."  # what peft puts before the name of every layer
# What else an adapter may be: with none of it set it is a plain LoRA.
ODD = ("use_dora", "use_qalora", "fan_in_fan_out", "lora_bias", "rank_pattern", "alpha_pattern", "modules_to_save",
       "layer_replication", "target_parameters", "trainable_token_indices")  # fmt: skip

Factors = dict[str, tuple[Tensor, Tensor]]  # a layer's name -> A (r, D), B (E, r)


class Down(nn.Linear):
    """A: (..., D) -> (..., r)."""

    def reset(self) -> None:
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))


class Up(nn.Linear):
    """B: (..., r) -> (..., E), zero at first."""

    def reset(self) -> None:
        nn.init.zeros_(self.weight)


class LoRALinear(nn.Linear):
    """W x + b + alpha / rank * B A x, with the weights of `old`: (..., D) -> (..., E)."""

    def __init__(self, old: nn.Linear, rank: int, alpha: float, dropout: float):
        super().__init__(old.in_features, old.out_features, bias=old.bias is not None, device="meta")
        self.weight, self.bias = old.weight, old.bias
        self.lora_A, self.lora_B = Down(old.in_features, rank, bias=False), Up(rank, old.out_features, bias=False)
        self.rank, self.alpha, self.drop = rank, alpha, nn.Dropout(dropout)

    def forward(self, input: Tensor) -> Tensor:
        learnt = self.alpha / self.rank * self.lora_B(self.lora_A(self.drop(input)))
        return super().forward(input).add_(learnt)  # in place: as the layer laid it out

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}, alpha={self.alpha}"


def merged(layer: LoRALinear) -> nn.Linear:
    """A plain layer with the weights of `layer`, to which the product of its adapter is added in place."""
    plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    with torch.no_grad():
        layer.weight += layer.alpha / layer.rank * (layer.lora_B.weight @ layer.lora_A.weight)
    plain.weight, plain.bias = layer.weight, layer.bias
    return plain


def read_adapter(model: nn.Module, folder: str | Path, source: str = "plait") -> Undo:
    """Apply the adapters in peft's folder to `model`, as the method `lora` with their numbers. Returns the undo.

    source: the layout whose names the file bears: "plait", of adapters that were made for our modules, or a key of the
        system's RULES. Where several layers of theirs are one of ours, such as queries and values in a fused
        projection, their ranks add up.
    Raises DataError for a file that is no plain LoRA, PlaitError for layers that the model has not.
    """
    config, factors = _read(Path(folder))
    rank = config["r"]
    scale = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
    if source != "plait":
        factors = _ours(model, factors, source)
    layers = {name: m for name, m in model.named_modules() if type(m) is nn.Linear}
    for name, (a, b) in factors.items():
        if name not in layers or layers[name].weight.shape != (b.shape[0], a.shape[1]):
            found = tuple(layers[name].weight.shape) if name in layers else "none"
            raise PlaitError(
                f"{folder}: got adapters of a layer {name} of {b.shape[0]} x {a.shape[1]}, and {type(model).__name__} "
                f"has {found} of this name: is it of this size, and source= its layout?"
            )
    most = max(len(a) for a, _ in factors.values())
    ends = tuple(sorted({name.rpartition(".")[2] for name in factors}))
    dropout = float(config.get("lora_dropout") or 0.0)
    undo = apply_method(model, "lora", rank=most, alpha=scale * most, targets=ends, dropout=dropout)
    with torch.no_grad():
        for name, (a, b) in factors.items():
            layer = cast(LoRALinear, model.get_submodule(name))
            for own, given in ((layer.lora_A.weight, a), (layer.lora_B.weight.mT, b.mT)):
                own.zero_()
                own[: len(given)] = given
    return undo


def write_adapter(model: nn.Module, folder: str | Path, source: str = "plait", base: str = "") -> Path:
    """Write the adapters of `model` as peft does: adapter_config.json and adapter_model.safetensors in `folder`.

    source: as for `read_adapter`; with "plait" peft finds the layers in our own model. base: the name or path of the
        weights beneath, for the file to tell. Raises PlaitError where there is no adapter.
    """
    found = {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}
    if len(told := {(m.rank, m.alpha, m.drop.p) for m in found.values()}) != 1:
        raise PlaitError(f"got adapters of {len(told)} kinds, expected one rank for all: apply the method lora first")
    ((rank, alpha, dropout),) = told
    factors: Factors = {name: (m.lora_A.weight.detach(), m.lora_B.weight.detach()) for name, m in found.items()}
    if source != "plait":
        factors = _theirs(model, factors, source)
    config = dict(peft_type="LORA", r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=sorted(factors))
    config |= dict(base_model_name_or_path=base or None, bias="none", task_type=None, inference_mode=True)
    config |= dict(fan_in_fan_out=False, use_rslora=False, use_dora=False, modules_to_save=None)
    state = {f"{THEIRS}{n}.lora_{k}.weight": f.clone() for n, pair in factors.items() for k, f in zip("AB", pair)}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / WEIGHTS, lambda path: save_file(state, path))
    write_whole(folder / CONFIG, lambda path: path.write_text(json.dumps(config, indent=2), encoding="utf-8"))
    return folder


def _read(folder: Path) -> tuple[dict[str, Any], Factors]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} holds no adapter: {CONFIG} cannot be read: {error}") from error
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or any(map(config.get, ODD)):
        odd = {k: config[k] for k in ("peft_type", "bias", *ODD) if config.get(k)}
        raise DataError(f"{folder / CONFIG}: got {odd}, expected a plain LoRA: merge it into its weights with peft")
    state = read_weights(folder / WEIGHTS)
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        name, _, which = key.removeprefix(THEIRS).removesuffix(".weight").rpartition(".lora_")
        if which not in ("A", "B") or not key.startswith(THEIRS):
            raise DataError(f"{folder / WEIGHTS}: got the key {key}, expected {THEIRS}LAYER.lora_A.weight or lora_B")
        pairs.setdefault(name, {})[which] = tensor.float()
    if not pairs or any(len(pair) < 2 for pair in pairs.values()):
        raise DataError(f"{folder / WEIGHTS}: got {len(pairs)} layers, expected an A and a B of each")
    return config, {name: (pair["A"], pair["B"]) for name, pair in pairs.items()}


def _ours(model: nn.Module, factors: Factors, source: str) -> Factors:
    """Factors under public names as those of our layers. B goes through the rules as the weight would, for they only
    rename layers or lay their outputs one after another."""
    rules = rules_of(model, source)
    public = convert({k: v.to("meta") for k, v in model.state_dict().items()}, rules, reverse=True)
    names, out, left = {id(t): key for key, t in public.items()}, {}, set(factors)
    for taken, _ in converted(public, rules):
        keys = [names[id(t)] for t in taken]
        own = [factors.get(key.removesuffix(".weight")) if key.endswith(".weight") else None for key in keys]
        if not any(own):
            continue
        ranks = [0 if pair is None else len(pair[0]) for pair in own]
        blocks = [torch.zeros(public[key].shape[0], sum(ranks)) for key in keys]
        for i, pair in enumerate(own):
            if pair is not None:
                blocks[i][:, sum(ranks[:i]) : sum(ranks[: i + 1])] = pair[1]
        (made_of,) = convert(dict(zip(keys, blocks)), rules).items()
        out[made_of[0].removesuffix(".weight")] = (torch.cat([pair[0] for pair in own if pair is not None]), made_of[1])
        left -= {key.removesuffix(".weight") for key in keys}
    if left:
        raise PlaitError(f"got adapters of {min(left)}, which the layout {source!r} has not: is source= theirs?")
    return out


def _theirs(model: nn.Module, factors: Factors, source: str) -> Factors:
    """Factors of our layers under public names; what is cut apart there has the same A."""
    rules, out = rules_of(model, source), {}
    for name, (a, b) in factors.items():
        for key, part in convert({f"{name}.weight": b}, rules, reverse=True).items():
            out[key.removesuffix(".weight")] = (a, part)
    return out
