"""DSI: Transformer Memory as a Differentiable Search Index. Tay et al., 2022. arXiv:2202.06991.

New here: a search without an index. A model of texts is taught to write the name of a text: of its first words, which
it thereby remembers, and of questions that it answers. To search is to write, by beams that only follow names that
exist (`parts/recall.py`). Names that tell in which clusters a text lies, coarse first, begin alike where texts are
alike (`parts/docids.py`); the model is T5, and nothing else is new in it.

Differs: a name is a text of several words, given or of clusters; the paper's third form, a word of its own for each
text, is what `classify` does. Texts and questions are drawn as often as the table has them.
"""

from __future__ import annotations

from plait.systems.text.t5 import RULES as T5_RULES
from plait.systems.text.t5 import T5

MODEL = T5
TAKES = ("text",)
ROLES = ("generator",)
DEFAULT = "nano"
OWN = dict(begin=2, end=3)
SIZES = {
    "toy": OWN | dict(vocab=64, length=32, width=32, depth=2, heads=2, head_width=12, hidden=64, dropout=0.0),
    "nano": OWN | dict(vocab=8192, length=512, width=192, depth=3, heads=4, head_width=48, hidden=512, gated=True),
    "base": dict(width=768, depth=12, heads=12, hidden=3072),
    "large": dict(width=1024, depth=24, heads=16, hidden=4096),
    "xl": dict(width=1024, depth=24, heads=32, head_width=128, hidden=16384),
    "xxl": dict(width=1024, depth=24, heads=128, head_width=128, hidden=65536),
}
WEIGHTS = {}
RULES = T5_RULES
