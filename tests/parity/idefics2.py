"""Idefics2 against transformers: logits of words behind several pictures a row, whole and split, of any shape and
padded, as the published preparation has them, which stand among padded words.

At full width, with fewer layers of the towers and fewer words; the row says how many.
"""

from __future__ import annotations

from functools import cache, partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import plait
from plait.core.catalog import build, systems
from plait.core.create import rules_of
from plait.core.init import initialise_rest
from plait.core.weights import assign, converted
from tests.parity.compare import Row, count, count_whole, relative_error
from tests.parity.norms import epsilons
from tests.peers import declare_torchvision

SYSTEM, CUTS = "idefics2", True
CASES = {f"{SYSTEM}_{size}": row["references"]["transformers"] for size, row in systems()[SYSTEM].weights.items()}
DEPTH, EYES, VOCAB, AROUND, MARK = 1, 3, 1000, 900, 901
SHAPES = (((70, 120), (90, 64)), ((57, 75),))  # of each row's pictures
ONE_EACH = (((70, 120),), ((57, 75),))


def config(*, depth: int, eyes: int, vocab: int, mark: int):
    """What the published config.json files say, but for these layers and words. The resampler's eps is that of the
    language model, as it was when the weights were published."""
    from transformers import Idefics2Config

    return Idefics2Config(
        vision_config=dict(
            hidden_size=1152, image_size=980, intermediate_size=4304, num_attention_heads=16, num_hidden_layers=eyes,
            patch_size=14,
        ),
        perceiver_config=dict(hidden_size=4096, rms_norm_eps=1e-5),
        text_config=dict(
            model_type="mistral", num_hidden_layers=depth, vocab_size=vocab, rms_norm_eps=1e-5, pad_token_id=0,
        ),
        image_token_id=mark,
    )  # fmt: skip


def prepared(split: bool, least: int, most: int, shapes=SHAPES) -> tuple[Tensor, Tensor]:
    """Rows of random pictures as the published preparation makes them: (B, P, 3, H, W), and which pixels are real.
    least, most: of the shorter and the longer side."""
    from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

    g = np.random.default_rng(0)
    rows = [[Image.fromarray(g.integers(0, 256, (*shape, 3), np.uint8)) for shape in row] for row in shapes]
    prepare = Idefics2ImageProcessorPil(size={"shortest_edge": least, "longest_edge": most}, do_image_splitting=split)
    made = prepare(rows, return_tensors="pt")
    return made["pixel_values"], made["pixel_attention_mask"].bool()


def texts(split: bool, words: int = 6, mark: int = MARK, around: int = AROUND, shapes=SHAPES) -> tuple[Tensor, Tensor]:
    """ids (B, N) with a mark for each of the pictures of `shapes`, and keep: shorter texts begin later."""
    g = torch.Generator().manual_seed(1)
    each = [around] + [mark, around] * (5 if split else 1)
    rows = []
    for row in shapes:
        first, *others = torch.randint(10, min(mark, around), (1 + len(row), words), generator=g).tolist()
        rows.append(sum((each + some for some in others), first))
    long = max(map(len, rows))
    ids = torch.tensor([[0] * (long - len(row)) + row for row in rows])
    return ids, torch.arange(long) >= torch.tensor([[long - len(row)] for row in rows])


def spread(ids: Tensor, keep: Tensor, latents: int, mark: int = MARK) -> tuple[Tensor, Tensor]:
    """The same texts with `latents` marks in the place of each."""
    rows = [row[real].repeat_interleave(torch.where(row[real] == mark, latents, 1)) for row, real in zip(ids, keep)]
    long = max(map(len, rows))
    real = torch.arange(long) >= torch.tensor([[long - len(row)] for row in rows])
    return torch.stack([torch.cat([row.new_zeros(long - len(row)), row]) for row in rows]), real


def root_epsilons(model: nn.Module) -> list[float]:
    """The eps of all norms by the root of the mean square, in order of size."""
    names = ("eps", "variance_epsilon")
    norms = (m for m in model.modules() if type(m).__name__.endswith("RMSNorm"))
    return sorted(next(getattr(m, name) for name in names if hasattr(m, name)) for m in norms)


@torch.no_grad()
def filled(model: nn.Module) -> nn.Module:
    """Random weights of the usual size in place of none, in a tenth of the time that drawing them twice takes: norms
    and biases clearly away from ones and zeros."""
    g = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        if p.dim() > 1:
            p.uniform_(-0.035, 0.035, generator=g)
        else:
            p.normal_(float(name.endswith("weight")), 0.2, generator=g)
    return model.eval()


@cache
def reference() -> nn.Module:
    """Their model: but for its vocabulary it is the same for all sizes."""
    declare_torchvision()
    from transformers import Idefics2ForConditionalGeneration
    from transformers.initialization import no_init_weights

    with no_init_weights():
        return filled(Idefics2ForConditionalGeneration(config(depth=DEPTH, eyes=EYES, vocab=VOCAB, mark=MARK)))


Batch = tuple[dict, Tensor]  # what is read before, and the last four words


def asked(split: bool, least: int, most: int, latents: int, shapes=SHAPES, **marks: int) -> tuple[Batch, dict]:
    """The same pictures and texts as ours reads them, and as theirs does."""
    image, real = prepared(split, least, most, shapes)
    ids, keep = texts(split, shapes=shapes, **marks)
    told, heard = spread(ids, keep, latents, marks.get("mark", MARK))
    theirs = dict(input_ids=told, attention_mask=heard.long(), pixel_values=image, pixel_attention_mask=real.long())
    return ({"image": image, "text": ids[:, :-4], "keep": {"image": real, "text": keep[:, :-4]}}, ids[:, -4:]), theirs


@torch.no_grad()
def said(ours: nn.Module, batch: Batch) -> Tensor:
    return ours.step(batch[1], ours.prefill(batch[0]))[0]


@torch.no_grad()
def differs(ours: nn.Module, theirs: nn.Module, split: bool, least: int, most: int, **how) -> float:
    """The relative error of the logits of the last four words."""
    batch, told = asked(split, least, most, theirs.config.perceiver_config.resampler_n_latents, **how)
    return relative_error(said(ours, batch), theirs(**told).logits[:, -4:])


@cache
@torch.no_grad()
def expected() -> list[tuple[Batch, Tensor]]:
    """What theirs says of whole and of split pictures."""
    made = (asked(False, 56, 120, 64), asked(True, 56, 120, 64, ONE_EACH))
    return [(batch, reference()(**told).logits[:, -4:]) for batch, told in made]


@torch.no_grad()
def parity(name: str) -> Row:
    declare_torchvision()
    from transformers import Idefics2ForConditionalGeneration

    info = plait.model_info(name)
    whole = config(depth=32, eyes=27, vocab=32002 if "base" in CASES[name] else 32003, mark=32001)
    parameters = info.parameters, count_whole(partial(Idefics2ForConditionalGeneration, whole))
    against, made = f"transformers {CASES[name]}", build(name)
    if parameters[0] != parameters[1] or (made.around, made.mark) != (32000, whole.image_token_id):
        return Row(name, against, *parameters, float("inf"))
    theirs, ours = reference(), build(name, vocab=VOCAB, mark=MARK, around=AROUND, depth=DEPTH).eval()
    ours.vision.stack.blocks = ours.vision.stack.blocks[:EYES]
    assign(ours, converted(theirs.state_dict(), rules_of(ours, "transformers")), share=True)  # as files are
    initialise_rest(ours)
    assert epsilons(ours) == epsilons(theirs) and root_epsilons(ours) == root_epsilons(theirs)
    assert count(ours) == count(theirs)
    error = max(relative_error(said(ours, batch), truth) for batch, truth in expected())
    cut = f"{DEPTH} layer and {VOCAB} words of the language model, {EYES} of the tower's layers"
    return Row(name, f"{against}, {cut}", *parameters, error, "layers")
