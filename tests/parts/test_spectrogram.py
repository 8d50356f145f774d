"""The log-mel spectrogram against its definition in numpy, and what padding, precision and export must not change."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from plait.core.init import initialise
from plait.parts.tokenizers.spectrogram import SILENCE, LogMel, SpectrogramTokens, mel_filters


def made(module):
    return initialise(module).eval()


def sound(rows=3, samples=1600, seed=0):
    return 0.1 * torch.randn(rows, samples, generator=torch.Generator().manual_seed(seed))


def oracle(wave: np.ndarray, rate: int, mels: int, size: int, hop: int) -> np.ndarray:
    """(S,) float64 -> (T, mels) by the definition: one explicit Fourier sum for each frame."""
    frames = -(-len(wave) // hop)
    padded = np.concatenate([np.zeros(size // 2), wave, np.zeros(size + hop)])
    n = np.arange(size)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / size)
    fourier = np.exp(-2j * np.pi * np.outer(np.arange(size // 2 + 1), n) / size)
    power = np.stack([np.abs(fourier @ (hann * padded[t * hop : t * hop + size])) ** 2 for t in range(frames)])

    def to_mel(hertz):
        return np.where(
            hertz < 1000, hertz / (200 / 3), 15 + np.log(np.maximum(hertz, 1e-9) / 1000) / (np.log(6.4) / 27)
        )

    grid = np.linspace(0, rate / 2, 200_001)
    edges = np.interp(np.linspace(0, to_mel(rate / 2), mels + 2), to_mel(grid), grid)
    bins = np.arange(size // 2 + 1) * rate / size
    bank = np.stack([np.interp(bins, edges[i : i + 3], [0, 2 / (edges[i + 2] - edges[i]), 0]) for i in range(mels)], 1)
    return (np.log10(np.maximum(power @ bank, 1e-8)) + 4) / 4


@pytest.mark.parametrize("rate, mels, samples", [(16000, 80, 1600), (8000, 40, 1001), (22050, 64, 2000)])
def test_agrees_with_the_definition(rate, mels, samples):
    model = made(LogMel(rate, mels))
    x = sound(2, samples)
    ours, keep = model(x)
    theirs = np.stack([oracle(row.double().numpy(), rate, mels, round(rate * 0.025), round(rate * 0.01)) for row in x])
    assert keep is None and ours.shape == theirs.shape
    np.testing.assert_allclose(ours.numpy(), theirs, atol=2e-5)


def test_agrees_with_transformers():
    """Whisper's features but for the floor relative to the loudest frame, which `spectrogram` does not apply."""
    audio = pytest.importorskip("transformers.audio_utils")
    bank = audio.mel_filter_bank(201, 80, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    np.testing.assert_allclose(mel_filters(16000, 400, 80).numpy(), bank, atol=1e-9)
    x = sound(1, 4000)[0]
    theirs = audio.spectrogram(
        x.double().numpy(),
        audio.window_function(400, "hann"),
        400,
        160,
        pad_mode="constant",
        power=2.0,
        mel_filters=bank,
        mel_floor=1e-8,
    )
    ours, _ = made(LogMel(16000, 80))(x[None])
    np.testing.assert_allclose(ours[0].T.numpy(), (np.log10(theirs[:, :25]) + 4) / 4, atol=2e-5)


def test_a_tone_lights_its_own_band():
    model = made(LogMel(16000, 40))
    time = torch.arange(8000) / 16000
    for hertz in (300.0, 1000.0, 4000.0):
        frames, _ = model(torch.sin(2 * torch.pi * hertz * time)[None])
        band = int(frames[0, 25].argmax())
        bins = torch.arange(201) * 40.0
        centre = float((bins * model.filters[:, band]).sum() / model.filters[:, band].sum())
        assert abs(centre - hertz) < 0.1 * hertz + 40


def test_padding_neither_leaks_nor_counts():
    model = made(SpectrogramTokens(16, LogMel(8000, 40), (4, 20)))
    x = sound(2, 1500)
    alone = model(x, torch.ones(2, 1500, dtype=torch.bool))
    for garbage in (0.0, 1e3, float("nan")):
        longer = torch.cat([x, torch.full((2, 900), garbage)], 1)
        t = model(longer, torch.arange(2400).expand(2, -1) < 1500)
        n = alone.x.shape[1]
        assert t.keep[:, :n].all() and not t.keep[:, n:].any() and t.x.isfinite().all()
        torch.testing.assert_close(t.x[:, :n], alone.x, rtol=0, atol=1e-6)
    assert torch.allclose(model(x).x, alone.x) and model(x).keep is None


def test_silence_and_short_sounds():
    model = made(LogMel(8000, 40))
    frames, keep = model(torch.zeros(1, 400), torch.zeros(1, 400, dtype=torch.bool))
    assert torch.equal(frames, torch.full_like(frames, SILENCE)) and not keep.any()
    tokens = made(SpectrogramTokens(8, LogMel(8000, 40), (4, 40)))
    for samples in (1, 79, 80, 81, 1281):
        t = tokens(sound(2, samples), torch.ones(2, samples, dtype=torch.bool))
        assert t.x.shape[:2] == t.keep.shape == (2, -(-samples // 320)) and t.keep.all()


def test_bfloat16_autocast_leaves_the_transform_alone():
    model = made(LogMel(8000, 40))
    full, _ = model(sound())
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = model(sound())
    assert torch.equal(full, half)


def test_compiles_and_exports_with_a_dynamic_batch():
    model = made(SpectrogramTokens(16, LogMel(8000, 40), (4, 20)))
    keep = torch.arange(1600).expand(3, -1) < torch.tensor([[1600], [1000], [3]])
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(sound(), keep).x, model(sound(), keep).x)
        rows = torch.export.Dim("rows", min=2, max=64)
        program = torch.export.export(model, (sound(), keep), dynamic_shapes=({0: rows}, {0: rows}))
        more = torch.ones(5, 1600, dtype=torch.bool)
        torch.testing.assert_close(program.module()(sound(5), more).x, model(sound(5), more).x)


def test_faults_are_named():
    with pytest.raises(ValueError, match="fewer mels"):
        LogMel(8000, 128)
    with pytest.raises(ValueError, match="do not divide"):
        SpectrogramTokens(16, LogMel(8000, 40), (4, 16))
    assert not LogMel(8000, 40).state_dict()
