"""EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention. Liu et al., 2023. arXiv:2305.07027.

New here: attention is what costs memory traffic, so there is one layer of it between two pairs of depthwise convolution
and feed-forward step. Its heads read each their own share of the channels, one after the other, and each adds to its
share what the head before it said: no two heads compute the same, and depth grows within a layer. Every norm is a batch
norm, which `fold_norms` takes away.

Differs: branches start with batch norms of one, not of zero. (The EfficientViT of linear attention is another system.)
"""

from __future__ import annotations

from torch import Tensor, nn

from plait.core.attend import Attend
from plait.core.block import Block, check_heads
from plait.core.schemes import VIT, ZERO, Paper
from plait.core.tokens import Tokens
from plait.core.weights import Drop, Rename
from plait.parts.convs import ChannelsLast, ConvNorm, Relu, Skip, SqueezeExcite, beside
from plait.parts.maps import flat, only_map, to_tokens
from plait.parts.mixers.windows import cut, mend
from plait.parts.positions.relative import DistanceBias
from plait.parts.towers.layouts import conv_norm
from plait.parts.towers.pyramid import Pyramid

KEY = 16  # width of a head's queries and keys


class CascadedAttention(nn.Module):
    """Attention in windows of side * side places, head after head, queries convolved by `kernels`: map -> the same."""

    def __init__(self, width: int, heads: int, side: int, kernels: tuple[int, ...]):
        super().__init__()
        check_heads(width, heads)
        self.side, self.share, self.attend = side, width // heads, Attend()
        self.qkv = nn.ModuleList(ConvNorm(self.share, 2 * KEY + self.share) for _ in range(heads))
        self.spread = nn.ModuleList(ConvNorm(KEY, KEY, k, groups=KEY) for k in kernels[:heads])
        self.bias, self.out = DistanceBias(heads, (side, side)), nn.Sequential(Relu(), ConvNorm(width, width))

    def forward(self, x: Tensor) -> Tensor:
        t, size = to_tokens(x), (self.side, self.side)
        x, grid = cut(t, size)
        x = x.unflatten(1, size).permute(0, 3, 1, 2)  # (B * windows, C, side, side)
        said = []
        for share, qkv, spread, bias in zip(x.split(self.share, 1), self.qkv, self.spread, self.bias().split(1, 1)):
            q, kv = qkv(share + said[-1] if said else share).tensor_split([KEY], 1)
            q, kv = (part.flatten(2).mT[:, None] for part in (spread(q), kv))  # each (B * windows, 1, side^2, E)
            k, v = kv.tensor_split([KEY], 3)
            said.append(self.attend.mix(q, k, v, bias=bias)[:, 0].unflatten(1, size).permute(0, 3, 1, 2))
        return only_map(mend(t, Tokens(flat(self.out(beside(*said)))), size, grid))


def local(width: int) -> list[nn.Module]:
    """A depthwise convolution and a feed-forward step, each a residual one."""
    feed = nn.Sequential(ConvNorm(width, 2 * width, act=Relu), ConvNorm(2 * width, width))
    return [Skip(ConvNorm(width, width, 3, groups=width)), Skip(feed)]


def sandwich(width: int, heads: int, side: int, kernels: tuple[int, ...]) -> Block:
    """One layer of attention between local ones; a block that maps flow through."""
    attention = Skip(CascadedAttention(width, heads, side, kernels))
    return Block(mix=nn.Sequential(*local(width), attention), feed=nn.Sequential(*local(width)))


def halve(channels: int, out: int) -> nn.Sequential:
    """Half the height and width, in a wide space with a look at the whole map, between two local pairs."""
    wide = 4 * channels
    first, second = ConvNorm(channels, wide, act=Relu), ConvNorm(wide, wide, 3, 2, groups=wide, act=Relu)
    down = first, second, SqueezeExcite(wide, channels), ConvNorm(wide, out)
    return nn.Sequential(*local(channels), *down, *local(out))


class EfficientViTM(Pyramid):
    """Pictures (B, 3, H, W) -> logits (B, K). sides: of each stage's windows. halvings: of the stem, widths double."""

    def __init__(self, *, widths, depths, heads, sides, kernels=(7, 5, 3, 3), halvings=4, num_classes=1000):
        steps, acts = [3, *(widths[0] >> n for n in reversed(range(halvings)))], [Relu] * (halvings - 1) + [None]
        convs = (ConvNorm(a, b, 3, 2, act=act) for a, b, act in zip(steps, steps[1:], acts))
        stages = []
        for i, (width, depth, h, side) in enumerate(zip(widths, depths, heads, sides)):
            layers = nn.Sequential(*(sandwich(width, h, side, kernels) for _ in range(depth)))
            stages.append(nn.Sequential(halve(widths[i - 1], width) if i else nn.Identity(), layers))
        super().__init__(nn.Sequential(ChannelsLast(), *convs), stages, nn.Identity(), widths[-1], num_classes)
        if num_classes:
            self.head = nn.Sequential(nn.BatchNorm1d(self.width), self.head)


FIVES = dict(kernels=(5, 5, 5, 5))
I224 = dict(sides=(7, 7, 4))

PAPER = Paper(
    (
        ("DistanceBias.table", ZERO),
        *(
            (f"stages.*.{end}.norm.weight", ZERO)
            for end in ("mix.0.f", "feed.0.f", "mix.?.f.1", "f.out.1", "feed.?.f.1", "?.f.1")
        ),
        *VIT,
    )
)

MODEL = EfficientViTM
TAKES = ("image",)
ROLES = ("backbone",)
DEFAULT = "nano"
SIZES = {
    "toy": dict(widths=(16, 32), depths=(1, 1), heads=(2, 2), sides=(2, 2), halvings=3, num_classes=10),
    "nano": dict(widths=(64, 96, 128), depths=(1, 2, 2), heads=(2, 3, 4), sides=(4, 4, 2), halvings=3),
    "m0": I224 | FIVES | dict(widths=(64, 128, 192), depths=(1, 2, 3), heads=(4, 4, 4)),
    "m1": I224 | dict(widths=(128, 144, 192), depths=(1, 2, 3), heads=(2, 3, 3), kernels=(7, 5, 3)),
    "m2": I224 | dict(widths=(128, 192, 224), depths=(1, 2, 3), heads=(4, 3, 2)),
    "m3": I224 | FIVES | dict(widths=(128, 240, 320), depths=(1, 2, 3), heads=(4, 3, 4)),
    "m4": I224 | dict(widths=(128, 256, 384), depths=(1, 2, 3), heads=(4, 4, 4)),
    "m5": I224 | dict(widths=(192, 288, 384), depths=(1, 3, 4), heads=(3, 3, 4)),
}

CROP = dict(image=(224, 224), crop_pct=0.875)
TIMM = CROP | dict(licence="mit", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
WEIGHTS = {
    "m0": TIMM | dict(hub="timm/efficientvit_m0.r224_in1k"),
    "m1": TIMM | dict(hub="timm/efficientvit_m1.r224_in1k"),
    "m2": TIMM | dict(hub="timm/efficientvit_m2.r224_in1k"),
    "m3": TIMM | dict(hub="timm/efficientvit_m3.r224_in1k"),
    "m4": TIMM | dict(hub="timm/efficientvit_m4.r224_in1k"),
    "m5": TIMM | dict(hub="timm/efficientvit_m5.r224_in1k"),
}


def timm_local(dw: str, ffn: str, ours: str, first: int) -> list[Rename]:
    """timm's residual pair to `local`'s, which begins at place `first` of `ours`."""
    return [
        *conv_norm(f"{dw}.m", f"{ours}.{first}.f"),
        *conv_norm(f"{ffn}.m.pw1", f"{ours}.{first + 1}.f.0"),
        *conv_norm(f"{ffn}.m.pw2", f"{ours}.{first + 1}.f.1"),
    ]


DOWN, LAYER = "stages.{s}.downsample", "stages.{s}.blocks.{i}"
MINE, ATTENTION = "stages.{s}.1.{i}", "stages.{s}.1.{i}.mix.2.f"
RULES = {
    "timm": [
        *(rule for n in range(1, 5) for rule in conv_norm(f"patch_embed.conv{n}", f"stem.{n}")),
        *timm_local(f"{DOWN}.res1.0", f"{DOWN}.res1.1", "stages.{s}.0", 0),
        *conv_norm(f"{DOWN}.patchmerge.conv1", "stages.{s}.0.2"),
        *conv_norm(f"{DOWN}.patchmerge.conv2", "stages.{s}.0.3"),
        Rename(f"{DOWN}.patchmerge.se.fc1.{{p}}", "stages.{s}.0.4.down.{p}"),
        Rename(f"{DOWN}.patchmerge.se.fc2.{{p}}", "stages.{s}.0.4.up.{p}"),
        *conv_norm(f"{DOWN}.patchmerge.conv3", "stages.{s}.0.5"),
        *timm_local(f"{DOWN}.res2.0", f"{DOWN}.res2.1", "stages.{s}.0", 6),
        *timm_local(f"{LAYER}.dw0", f"{LAYER}.ffn0", f"{MINE}.mix", 0),
        Rename(f"{LAYER}.mixer.m.attn.attention_biases", f"{ATTENTION}.bias.table"),
        Drop(f"{LAYER}.mixer.m.attn.attention_bias_idxs"),
        *conv_norm(f"{LAYER}.mixer.m.attn.qkvs.{{h}}", f"{ATTENTION}.qkv.{{h}}"),
        *conv_norm(f"{LAYER}.mixer.m.attn.dws.{{h}}", f"{ATTENTION}.spread.{{h}}"),
        *conv_norm(f"{LAYER}.mixer.m.attn.proj.1", f"{ATTENTION}.out.1"),
        *timm_local(f"{LAYER}.dw1", f"{LAYER}.ffn1", f"{MINE}.feed", 0),
        Rename("head.bn.{p}", "head.0.{p}"),
        Rename("head.linear.{p}", "head.1.{p}"),
    ]
}
