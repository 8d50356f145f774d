"""AdamW with weight decay where it belongs, the learning rate over a run, and the choice of precision by measuring."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

from plait.errors import PlaitError
from plait.train.parallel import to_device

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

# Layers that multiply by their weight. All else (norms, biases, positions, special tokens, lookups, scales) is not
# decayed: decay pulls a factor or a row that is seldom looked up towards zero without the gradient having asked for it.
MATRICES = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.MultiheadAttention)
FUSED = ("cpu", "cuda", "xpu", "mps")  # where one kernel updates all parameters (on CPU 3 times faster than foreach)
FLOOR = 0.01  # the share of the learning rate that is left at the end


def groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Parameter groups of `model` for an optimizer: only the matrices of linear layers and convolutions are decayed.

    A module may carry `lr_factor` (a float, such as 0.1 for a pretrained backbone): the learning rate of every
    parameter below it is multiplied by it, and by those of the modules it stands in. Frozen parameters are left out.
    Each group has `params`, `names` (in the same order), `weight_decay` and `lr_factor`.
    """
    found: dict[tuple[float, float], dict] = {}
    seen: set[int] = set()

    def visit(module: nn.Module, prefix: str, factor: float) -> None:
        factor *= getattr(module, "lr_factor", 1.0)
        for name, p in module.named_parameters(recurse=False):
            if not p.requires_grad or id(p) in seen:
                continue
            seen.add(id(p))
            decay = weight_decay if isinstance(module, MATRICES) and name.endswith("weight") else 0.0
            group = found.setdefault((factor, decay), dict(params=[], names=[], weight_decay=decay, lr_factor=factor))
            group["params"].append(p)
            group["names"].append(prefix + name)
        for name, child in module.named_children():
            visit(child, f"{prefix}{name}.", factor)

    visit(model, "", 1.0)
    if not found:
        raise PlaitError(
            f"{type(model).__name__} has no parameter to train: all are frozen; unfreeze some, or give it a head"
        )
    return list(found.values())


def adamw(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over `groups(model, weight_decay)`, fused where the device has it. Its second moment forgets faster than
    usual, as CLIP's."""
    made = groups(model, weight_decay)
    return torch.optim.AdamW(made, lr=lr, betas=(0.9, 0.98), fused=made[0]["params"][0].device.type in FUSED)


def schedule(progress: float, warmup: float) -> float:
    """The factor on the learning rate after the share `progress` of a run: linear up to 1 at `warmup`, then a cosine
    down to 0.01."""
    if progress < warmup:
        return progress / warmup
    past = min((progress - warmup) / (1.0 - warmup), 1.0) if warmup < 1.0 else 1.0
    return FLOOR + (1.0 - FLOOR) * 0.5 * (1.0 + math.cos(math.pi * past))


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def clip(parameters: Iterable[Tensor], limit: float) -> None:
    """Scale the gradients so that their joint norm is at most `limit`.

    On the CPU the norm is looked at first, and gradients within the limit are not touched: one pass over memory instead
    of two.
    """
    parameters = [p for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    norm = whole(norm)
    if norm.device.type != "cpu" or norm > limit:
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)


def sharded(t: Tensor) -> TypeGuard[DTensor]:
    """Whether a tensor is spread over processes. What makes such tensors takes a second to import."""
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(t, tensors.DTensor)


def whole(t: Tensor) -> Tensor:
    """The full tensor of one that may be sharded over processes (all of them must ask)."""
    return t.full_tensor() if sharded(t) else t


def whole_state(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """`whole` of every tensor of a state dict, cut off from its gradient."""
    return {k: whole(v.detach()) for k, v in tensors.items()}


def placed_like(t: Tensor, like: Tensor) -> Tensor:
    """A full tensor, copied to where `like` is and sharded as it is."""
    if sharded(like):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(t.to(like.device), like.device_mesh, like.placements)
    return torch.empty_like(like, dtype=t.dtype).copy_(t)


def flat_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors by parameter: {"stack.0.weight:exp_avg": ...}, sharded ones made whole."""
    out = {}
    for group in optimizer.param_groups:
        for name, p in zip(group["names"], group["params"], strict=True):
            for field, value in optimizer.state.get(p, {}).items():
                out[f"{name}:{field}"] = whole(value.detach())
    return out


def load_flat(optimizer: torch.optim.Optimizer, flat: dict[str, Tensor]) -> None:
    """Put back what `flat_state` took; a name that the optimizer does not know raises ValueError."""
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, value in flat.items():
        name, field = key.rsplit(":", 1)
        by_name.setdefault(name, {})[field] = value
    own = optimizer.state_dict()
    for group, stored in zip(optimizer.param_groups, own["param_groups"], strict=True):
        for name, p, index in zip(group["names"], group["params"], stored["params"], strict=True):
            fields = by_name.pop(name, {})
            if fields:
                own["state"][index] = {f: v.clone() if v.dim() == 0 else placed_like(v, p) for f, v in fields.items()}
    if by_name:
        raise PlaitError(
            f"the optimizer's state knows {len(by_name)} parameters that the model does not train, such as "
            f"{min(by_name)}"
        )
    optimizer.load_state_dict(own)


# From which width of matrices on bfloat16 pays. On a CPU (AVX512-BF16, steps of 16 to 128 rows, one thread) it is 0.87
# to 1.09 times as fast below (`auto_tiny` on plain tables), and 1.2 to 2.5 times from 128 on (`auto_small`, `vit_nano`,
# `bert_nano`). On a GPU narrow models wait for their launches, which casts add to.
WIDE = {"cpu": 128, "cuda": 256}


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 itself, rather than imitating it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return False


def pick_precision(model: nn.Module, batch: dict, device: str | torch.device) -> str:
    """ "bf16" where the device computes in it, most of `model` stands in matrices for which it is known to pay, and a
    step on `batch` has finite losses in it; else "fp32".

    Nothing is timed: on one machine one model is always trained alike. Weights, gradients, buffers and the global
    random state are left as they were (the model stays on `device`).
    """
    device = torch.device(device)
    if not has_bf16(device) or share_of_wide(model, WIDE[device.type]) < 0.5:
        return "fp32"
    training, model = model.training, model.to(device)
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    model.train()
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(cuda), torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        torch.manual_seed(0)
        losses = model(to_device(batch, device), torch.Generator(device).manual_seed(0))
        usable = bool(torch.stack([v.float() for v in losses.values()]).isfinite().all())
        for name, b in model.named_buffers():
            b.copy_(buffers[name])
    model.train(training)
    return "bf16" if usable else "fp32"


def share_of_wide(model: nn.Module, width: int) -> float:
    """The share of the trained weights that stand in matrices (filters count as one) of at least `width` rows and as
    many columns."""
    sizes = [(min(len(p), p[0].numel()), p.numel()) for p in model.parameters() if p.requires_grad and p.dim() > 1]
    return sum(n for least, n in sizes if least >= width) / max(sum(n for _, n in sizes), 1)
