"""LLaVA against transformers: logits of every word behind a picture, which stands among padded words.

At full width, with fewer layers of both and fewer words; the row says how many.
"""

from __future__ import annotations

from functools import partial

import torch

import plait
from plait.core.catalog import build, systems
from tests.parity.compare import Row, count, count_whole, perturb, relative_error
from tests.peers import declare_torchvision

SYSTEM, CUTS = "llava", True
CASES = {f"{SYSTEM}_{size}": row["references"]["transformers"] for size, row in systems()[SYSTEM].weights.items()}
DEPTH, EYES, VOCAB, MARK = 1, 3, 1000, 900


def config(reference: str, *, depth: int, eyes: int, vocab: int, mark: int):
    """What the published config.json of `reference` says, but for these layers and words."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, MistralConfig

    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=eyes, num_attention_heads=16, image_size=336,
        patch_size=14,
    )  # fmt: skip
    cut = dict(num_hidden_layers=depth, vocab_size=vocab, rms_norm_eps=1e-5)
    if "bakLlava" in reference:
        text = MistralConfig(**cut)
    elif "13b" in reference:
        text = LlamaConfig(hidden_size=5120, intermediate_size=13824, num_attention_heads=40, **cut)
    else:
        text = LlamaConfig(**cut)
    return LlavaConfig(vision_config=vision.to_dict(), text_config=text.to_dict(), image_token_index=mark)


def published(theirs) -> dict:
    """The keys as the published files have them, which are older than today's class."""
    new = {"model.language_model.": "language_model.model.", "lm_head.": "language_model.lm_head."}
    new |= {"model.vision_tower.": "vision_tower.vision_model.", "model.multi": "multi"}
    state = {}
    for key, tensor in theirs.state_dict().items():
        old = next(start for start in new if key.startswith(start))
        state[new[old] + key.removeprefix(old)] = tensor
    return state


@torch.no_grad()
def parity(name: str) -> Row:
    declare_torchvision()
    from transformers import LlavaForConditionalGeneration

    info, reference = plait.model_info(name), CASES[name]
    whole = config(reference, depth=40 if "13b" in reference else 32, eyes=24, vocab=32064, mark=32000)
    parameters = info.parameters, count_whole(partial(LlavaForConditionalGeneration, whole))
    if parameters[0] != parameters[1] or build(name).mark != whole.image_token_index:
        return Row(name, f"transformers {reference}", *parameters, float("inf"))
    made = config(reference, depth=DEPTH, eyes=EYES, vocab=VOCAB, mark=MARK)
    theirs = perturb(LlavaForConditionalGeneration(made))
    ours = plait.create_model(name, vocab=VOCAB, mark=MARK, depth=DEPTH).eval()
    ours.vision.stack.blocks = ours.vision.stack.blocks[:EYES]
    assert count(ours) == count(theirs)
    plait.load_weights(ours, published(theirs), source="transformers")
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(10, 800, (2, 12), generator=g)
    ids[0, 3] = ids[1, 6] = MARK
    keep = torch.arange(12) >= torch.tensor([0, 2])[:, None]  # the second begins later
    x = torch.randn(2, 3, 336, 336, generator=g)
    m = (336 // 14) ** 2
    long = [torch.cat([row[:at], row.new_full((m,), MARK), row[at + 1 :]]) for row, at in zip(ids, (3, 6))]
    real = torch.cat([keep[:, :1].expand(-1, 0), keep, keep[:, -1:].expand(-1, m - 1)], 1)
    expected = theirs(input_ids=torch.stack(long), pixel_values=x, attention_mask=real.long()).logits[:, -4:]
    batch = {"image": x, "text": ids[:, :8], "keep": {"text": keep[:, :8]}}
    got, _ = ours.step(ids[:, 8:], ours.prefill(batch))
    error = relative_error(got, expected)
    said = (
        f"transformers {reference}, {DEPTH} layer and {VOCAB} words of the language model, {EYES} of the tower's layers"
    )
    return Row(name, said, *parameters, error, "layers")
