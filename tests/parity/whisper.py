"""Whisper against transformers: features of sounds, logits of texts, alone or after others, at once and word by word,
and what is written greedily after the published prompt, without what is never written."""

from __future__ import annotations

import torch

import plait
from plait.core.catalog import build, systems
from plait.parts.generation import generate
from tests.parity.compare import Row, count_whole, perturb, relative_error
from tests.parity.norms import epsilons
from tests.peers import declare_torchvision

SYSTEM, CUTS = "whisper", True
CASES = {f"{SYSTEM}_{size}": row["references"]["transformers"] for size, row in systems()[SYSTEM].weights.items()}
# what the published config.json of each says: width, heads, layers that hear and that write
PUBLISHED = {
    "tiny": (384, 6, 4, 4), "base": (512, 8, 6, 6), "small": (768, 12, 12, 12), "medium": (1024, 16, 24, 24),
    "large": (1280, 20, 32, 32), "large-v2": (1280, 20, 32, 32), "large-v3": (1280, 20, 32, 32),
    "large-v3-turbo": (1280, 20, 32, 4), "distil-small": (768, 12, 12, 4), "distil-medium": (1024, 16, 24, 2),
    "distil-large-v2": (1280, 20, 32, 2), "distil-large-v3": (1280, 20, 32, 2),
}  # fmt: skip
STEPS, FEW = 70, 16  # words that are written by models that are compared whole, and by others
LIMIT = 1e8  # parameters of a model that is compared whole


def sounds() -> tuple[torch.Tensor, torch.Tensor]:
    """Half a minute of rising tones in noise, and seventeen seconds of others with a pause: (2, S), keep (2, S)."""
    g, seconds = torch.Generator().manual_seed(1), torch.arange(480_000) / 16_000
    x = torch.stack([(2000 * seconds + 90 * seconds**2).sin(), (800 * seconds).sin() * (3 * seconds).cos()])
    x = 0.3 * x + torch.tensor([[0.1], [1e-3]]) * torch.randn(2, 480_000, generator=g)
    x[1, 80_000:100_000] = 0.0
    keep = torch.arange(480_000) < torch.tensor([480_000, 277_777])[:, None]
    return x.masked_fill(~keep, 0.0), keep


def short(reference: str) -> str:
    """What tells the shapes: "distil-whisper/distil-small.en" has those of "distil-small"."""
    return reference.split("/")[1].removeprefix("whisper-").removesuffix(".en")


def published(reference: str, depths: tuple[int, int] | None = None):
    """transformers' model as published, of so many layers if given, with random weights, and how it writes."""
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration
    from transformers.models.whisper.configuration_whisper import NON_SPEECH_TOKENS, NON_SPEECH_TOKENS_MULTI

    width, heads, hears, writes = PUBLISHED[short(reference)]
    hears, writes = depths or (hears, writes)
    english, more = reference.endswith(".en"), "v3" in reference
    vocab, languages = (51864, 99) if english else (51866, 100) if more else (51865, 99)
    end = 50256 if english else 50257
    start, translate = end + 1, end + 2 + languages
    made = WhisperConfig(
        vocab_size=vocab, num_mel_bins=128 if more else 80, d_model=width, encoder_layers=hears, decoder_layers=writes,
        encoder_attention_heads=heads, decoder_attention_heads=heads, encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width, pad_token_id=end, bos_token_id=end, eos_token_id=end, decoder_start_token_id=start,
    )  # fmt: skip
    theirs = WhisperForConditionalGeneration(made)
    signs = [i for i in (NON_SPEECH_TOKENS if english else NON_SPEECH_TOKENS_MULTI) if i < end]
    # as the official decoding has it: all of the prompt's words but languages and times
    theirs.generation_config = GenerationConfig(
        decoder_start_token_id=start, eos_token_id=end, pad_token_id=end, max_length=448, is_multilingual=not english,
        suppress_tokens=[*signs, start, *range(translate, translate + 5)], begin_suppress_tokens=[220, end],
        no_timestamps_token_id=translate + 5, prev_sot_token_id=translate + 3, return_timestamps=False,
        lang_to_id={"<|en|>": start + 1}, task_to_id={"translate": translate, "transcribe": translate + 1},
        forced_decoder_ids=[[1, translate + 5]] if english else None,
    )  # fmt: skip
    return theirs


@torch.no_grad()
def lively(theirs, seed: int = 0):
    """Weights with which nearly every word that is written is another, and hangs on the sound: `perturb`, places that
    say more than words, and looks at the sound that choose; words that are not to be written come first otherwise."""
    perturb(theirs, seed)
    g = torch.Generator().manual_seed(seed)
    for layer in theirs.model.decoder.layers:
        layer.encoder_attn.q_proj.weight.mul_(6.0)
        layer.encoder_attn.out_proj.weight.mul_(3.0)
    places, how = theirs.model.decoder.embed_positions.weight, theirs.generation_config
    places.copy_(torch.randn(places.shape, generator=g))
    theirs.model.decoder.embed_tokens.weight[[*how.suppress_tokens, 220]] *= 2.0
    return theirs


@torch.no_grad()
def errors(ours, theirs, english: bool, most: int) -> list[float]:
    """Of features, of logits of a text at once, which in the first row follows another one, and of its last words one
    by one. What is written greedily, `most` words, must be alike."""
    from transformers import WhisperFeatureExtractor
    from transformers.modeling_outputs import BaseModelOutput

    x, keep = sounds()
    extract = WhisperFeatureExtractor(feature_size=theirs.config.num_mel_bins)
    heard = [row[real].numpy() for row, real in zip(x, keep)]
    features = extract(heard, sampling_rate=16_000, return_tensors="pt").input_features
    found = [relative_error(ours.ear(x)[0].mT, features)]
    earlier, said = torch.randint(0, 50_000, (2, 2, 80), generator=torch.Generator().manual_seed(2))
    asked = torch.tensor([[*ours.before, ours.begin]])
    mark = torch.tensor([[theirs.generation_config.prev_sot_token_id]])
    encoded = theirs.model.encoder(features).last_hidden_state
    want = []
    for row, before in enumerate(([mark, earlier[:1], asked], [asked])):
        ids = torch.cat([*before, said[row : row + 1]], 1)
        want.append(theirs(encoder_outputs=(encoded[row : row + 1],), decoder_input_ids=ids).logits[:, -80:])
    batch = {"audio": x, "text": earlier, "keep": {"audio": keep}}
    there = {"audio": torch.ones(2, dtype=torch.bool), "text": torch.tensor([True, False])}
    _, start = ours.step(asked[:, -1:].expand(2, -1), ours.prefill(batch | {"present": there}))
    found.append(relative_error(ours.step(said, start)[0], torch.cat(want)))
    _, cache = ours.step(said[:, :77], start)
    for i in range(77, 80):
        got, cache = ours.step(said[:, i : i + 1], cache)
        found.append(relative_error(got[:, 0], torch.cat(want)[:, i]))
    how = {} if english else dict(language="en", task="transcribe")
    how |= dict(max_new_tokens=most, force_unique_generate_call=True)
    words = theirs.generate(features[1:], encoder_outputs=BaseModelOutput(encoded[1:]), **how)
    assert torch.equal(words[:, : asked.shape[1]], asked), f"another prompt: {words.tolist()}"
    words = words[:, asked.shape[1] :]
    mine = generate(ours, {"audio": x[1:], "keep": {"audio": keep[1:]}}, most=most).tokens
    assert len(set(words[0].tolist())) > 10, f"too few words to prove anything: {words.tolist()}"
    assert torch.equal(mine, words), f"other words: {mine.tolist()}, not {words.tolist()}"
    return found


def counted(reference: str) -> int:
    """Parameters of transformers' whole model without sines and cosines, which are none of ours."""
    return count_whole(lambda: published(reference)) - 1500 * PUBLISHED[short(reference)][0]


@torch.no_grad()
def parity(name: str) -> Row:
    declare_torchvision()
    reference = CASES[name]
    parameters = plait.model_info(name).parameters, counted(reference)
    if parameters[0] != parameters[1]:
        return Row(name, f"transformers {reference}", *parameters, float("inf"))
    hears, writes = PUBLISHED[short(reference)][2:]
    cut = (hears, writes) if parameters[0] < LIMIT else (2, 2)
    theirs = lively(published(reference, cut))
    ours = build(name, hear_depth=cut[0], depth=cut[1]).to_empty(device="cpu").eval()
    ours.ear.reset()
    plait.load_weights(ours, theirs.state_dict(), source="transformers")
    how = theirs.generation_config
    assert epsilons(ours) == epsilons(theirs) and ours.end == how.eos_token_id
    assert sorted(ours.never) == sorted(how.suppress_tokens) and [*ours.never_first] == how.begin_suppress_tokens
    whole = cut == (hears, writes)
    told = "" if whole else f", {cut[0]} + {cut[1]} of {hears} + {writes} layers, {FEW} words"
    error = max(errors(ours, theirs, reference.endswith(".en"), STEPS if whole else FEW))
    return Row(name, f"transformers {reference}{told}", *parameters, error, "output" if whole else "layers")
