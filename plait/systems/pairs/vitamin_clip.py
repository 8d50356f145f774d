"""ViTamin: Designing Scalable Vision Models in the Vision-Language Era. Chen et al., 2024. arXiv:2404.02132.

New here: `vitamin`'s picture tower beside CLIP's text tower, trained as CLIP is. In the `ltt` sizes a small picture
tower learns from a large model's text tower, which stays as it was (locked-text tuning).

Differs: locking the text tower is the trainer's: `plait.core.surgery.freeze(model.towers["text"])`.
"""

from __future__ import annotations

from torch import Tensor, nn

from plait.core.weights import Lift, Rename, under
from plait.parts.towers.layouts import open_clip_text
from plait.parts.towers.pair import TwoTowers
from plait.systems.pairs.clip import TextTower
from plait.systems.vision.vitamin import RULES as TRUNK
from plait.systems.vision.vitamin import ViTamin


class PictureTower(nn.Module):
    """Pictures (B, 3, H, W) -> vectors (B, E): the pooled features, projected."""

    def __init__(self, eye: ViTamin, embed: int):
        super().__init__()
        self.vitamin, self.project = eye, nn.Linear(eye.width, embed, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.vitamin.pool(self.vitamin.tokens(x)))


class ViTaminCLIP(TwoTowers):
    """image, channels, depths, width, depth, heads, positions: the picture tower, as in `vitamin`. vocab, length,
    text_*: the text tower. embed: E."""

    def __init__(
        self, *, image=(224, 224), channels, depths=(2, 4), width, depth, heads, positions=True, drop_path=0.0,
        vocab=49408, length=77, text_width, text_depth=12, text_heads, embed,
    ):  # fmt: skip
        shape = dict(image=image, channels=channels, depths=depths, width=width, depth=depth, heads=heads)
        eye = ViTamin(**shape, positions=positions, num_classes=0, drop_path=drop_path)
        text = TextTower(vocab, length, text_width, text_depth, text_heads, embed, nn.GELU)
        super().__init__(PictureTower(eye, embed), text, image, embed)


T384 = dict(text_width=384, text_heads=6, embed=384)
T512 = dict(text_width=512, text_heads=8, embed=512)
T768 = dict(text_width=768, text_heads=12, embed=768)
T1024 = dict(text_width=1024, text_heads=16, text_depth=24, embed=1024)
T1152 = dict(text_width=1152, text_heads=16, text_depth=27, embed=1152)
SMALL = dict(channels=(64, 128), width=384, depth=14, heads=6)
BASE = dict(channels=(128, 256), width=768, depth=14, heads=12)
LARGE = dict(channels=(160, 320), width=1024, depth=31, heads=16)
XLARGE = dict(channels=(192, 384), width=1152, depth=32, heads=16, positions=False)
I256 = dict(image=(256, 256))
I336 = dict(image=(336, 336))
I384 = dict(image=(384, 384))

MODEL = ViTaminCLIP
TAKES = ("image", "text")
ROLES = ("embedder",)
DEFAULT = "nano"
TOY = dict(
    image=(32, 32), channels=(8, 16), depths=(1, 2), width=32, depth=2, heads=2, text_width=32, text_depth=2,
    text_heads=2, embed=16,
)  # fmt: skip
NANO = dict(
    image=(64, 64), channels=(32, 64), width=160, depth=5, heads=5, text_width=160, text_depth=4, text_heads=5,
    embed=128,
)  # fmt: skip
SIZES = {
    "toy": TOY | dict(vocab=64, length=16),
    "nano": NANO | dict(vocab=8192),
    "s": SMALL | T384,
    "s_ltt": SMALL | T768,
    "b": BASE | T512,
    "b_ltt": BASE | T768,
    "l": LARGE | T768,
    "l_256": LARGE | T768 | I256,
    "l_336": LARGE | T768 | I336,
    "l_384": LARGE | T768 | I384,
    "l2": LARGE | T1024,
    "l2_256": LARGE | T1024 | I256,
    "l2_336": LARGE | T1024 | I336,
    "l2_384": LARGE | T1024 | I384,
    "xl_256": XLARGE | T1152 | I256,
    "xl_336": XLARGE | T1152 | I336,
    "xl_384": XLARGE | T1152 | I384,
}
TOKENS = dict(tokenizer="openai/clip-vit-base-patch32/tokenizer.json", begin=49406, end=49407)
SEEN = dict(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
JHU = TOKENS | SEEN | dict(source="open_clip", file="pytorch_model.bin", licence="mit", crop_pct=1.0)
WEIGHTS = {
    "s": JHU | dict(hub="jienengchen/ViTamin-S", open_clip="ViTamin-S"),
    "s_ltt": JHU | dict(hub="jienengchen/ViTamin-S-LTT", open_clip="ViTamin-S-LTT"),
    "b": JHU | dict(hub="jienengchen/ViTamin-B", open_clip="ViTamin-B"),
    "b_ltt": JHU | dict(hub="jienengchen/ViTamin-B-LTT", open_clip="ViTamin-B-LTT"),
    "l": JHU | dict(hub="jienengchen/ViTamin-L-224px", open_clip="ViTamin-L"),
    "l_256": JHU | dict(hub="jienengchen/ViTamin-L-256px", open_clip="ViTamin-L-256"),
    "l_336": JHU | dict(hub="jienengchen/ViTamin-L-336px", open_clip="ViTamin-L-336"),
    "l_384": JHU | dict(hub="jienengchen/ViTamin-L-384px", open_clip="ViTamin-L-384"),
    "l2": JHU | dict(hub="jienengchen/ViTamin-L2-224px", open_clip="ViTamin-L2"),
    "l2_256": JHU | dict(hub="jienengchen/ViTamin-L2-256px", open_clip="ViTamin-L2-256"),
    "l2_336": JHU | dict(hub="jienengchen/ViTamin-L2-336px", open_clip="ViTamin-L2-336"),
    "l2_384": JHU | dict(hub="jienengchen/ViTamin-L2-384px", open_clip="ViTamin-L2-384"),
    "xl_256": JHU | dict(hub="jienengchen/ViTamin-XL-256px", open_clip="ViTamin-XL-256"),
    "xl_336": JHU | dict(hub="jienengchen/ViTamin-XL-336px", open_clip="ViTamin-XL-336"),
    "xl_384": JHU | dict(hub="jienengchen/ViTamin-XL-384px", open_clip="ViTamin-XL-384"),
}
IMAGE, TEXT = "towers.image", "towers.text"
RULES = {
    "open_clip": [
        Lift("logit_scale", "logit_scale"),
        *under(TRUNK["timm"], "visual.trunk.", f"{IMAGE}.vitamin."),
        Rename("visual.head.proj.weight", f"{IMAGE}.project.weight"),
        *open_clip_text("text.", TEXT),
    ]
}
