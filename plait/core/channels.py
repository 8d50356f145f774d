"""Pictures of any number of channels: which layers see them, and what becomes of weights that were learned for three.

Convolutions of three channels are those that see pictures. A module that sees them otherwise has
`for_channels(channels)`, which builds its layers anew, and says whether channels lie side by side there (`interleaved`)
or one after the other.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from plait.errors import PlaitError

RGB = 3


def see(model: nn.Module, channels: int) -> None:
    """`model`, on the meta device and made for three channels, reads pictures of so many. `model.in_chans` says it, and
    `model.of_channels` which of its weights see them: {name: (channels, whether these lie side by side there)}."""
    if not isinstance(channels, int) or channels < 1:
        raise PlaitError(f"in_chans: got {channels!r}, expected a number of channels such as 1, 3 or 4")
    before = {key: t.shape for key, t in model.state_dict().items()}
    side_by_side: tuple[str, ...] = ()
    for name, module in list(model.named_modules()):
        if hasattr(module, "for_channels"):
            module.for_channels(channels)
            side_by_side += (f"{name}.",) if module.interleaved else ()
        elif isinstance(module, (nn.Conv2d, nn.Conv3d)) and (module.in_channels, module.groups) == (RGB, 1):
            old = module.weight
            new = old.new_empty(old.shape[0], channels, *old.shape[2:])
            module.weight, module.in_channels = nn.Parameter(new, old.requires_grad), channels
        blanks = vars(module).get("blanks", {})
        for slot, (shape, dtype) in blanks.items():
            if len(shape) == 3 and shape[0] == RGB:
                blanks[slot] = (channels, *shape[1:]), dtype
    changed = [key for key, t in model.state_dict().items() if t.shape != before[key]]
    if not changed and channels != RGB:
        raise PlaitError(f"in_chans={channels}: {type(model).__name__} reads no pictures")
    model.in_chans = channels  # type: ignore[assignment]
    eyes = {key: (channels, key.startswith(side_by_side)) for key in changed}
    model.of_channels = eyes  # type: ignore[assignment]


def seen(tensor: Tensor, like: Tensor, channels: int, interleaved: bool) -> Tensor:
    """What was learned of three channels, for so many, in the shape of `like`; a tensor of any other shape as it is.

    As in timm: one channel gets the sum of all three, more get copies in turn, scaled so that together they count as
    much. Norms of pixels, which are no sums, get the mean and unscaled copies.
    """
    odd = [d for d, (n, own) in enumerate(zip(tensor.shape, like.shape)) if n != own]
    if tensor.dim() != like.dim() or len(odd) != 1 or tensor.shape[odd[0]] * channels != like.shape[odd[0]] * RGB:
        return tensor
    (d,) = odd
    x = tensor.unflatten(d, (-1, RGB) if interleaved else (RGB, -1)).float()
    at, sums = d + interleaved, tensor.dim() > 1
    if channels == 1:
        x = x.sum(at, keepdim=True) if sums else x.mean(at, keepdim=True)
    else:
        x = x.index_select(at, torch.arange(channels, device=x.device) % RGB)
        x = x * (RGB / channels) if sums else x
    return x.flatten(d, d + 1).to(tensor.dtype)
