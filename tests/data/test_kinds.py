"""Each kind of column: what it recognises, what it learns, what it makes of good and bad cells."""

from __future__ import annotations

import io
import math

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from plait.data.kinds import KINDS, Bad, Missing, Place
from plait.data.kinds.base import FitOptions, Glance
from plait.data.kinds.text import tokenizer_of
from tests.data.maker import bomb

HERE = Place()


def column(cells: list) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(cells)])


def fitted(
    kind: str,
    cells: list,
    image_size: list[int] | None = None,
    max_tokens: int | None = None,
    tokenizer_file: str | None = None,
) -> dict:
    return KINDS[kind].fit(column(cells), FitOptions(HERE, image_size, max_tokens, 500, tokenizer_file))


def guessed(cells: list, name: str = "x") -> str:
    glance = Glance(name, column(cells), HERE)
    return next(kind for kind, made in KINDS.items() if made.guess(glance) is not None)


def saved(picture: Image.Image, form: str = "PNG", **how: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **how)
    return out.getvalue()


def decoded(data: bytes, size: tuple[int, int]) -> np.ndarray:
    return KINDS["image"].encode(data, {"size": list(size)}, HERE)


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["a.png", "b.JPG", "c.webp"], "image"),
        (["a.wav", "b.flac", None], "audio"),
        ([[1.0, 2.0], [3.0, 4.0]], "vector"),
        (["[1, 2.5]", "[3, 4]"], "vector"),
        ([True, False, None], "boolean"),
        (["yes", "No", "YES"], "boolean"),
        ([0, 1, 1, 0], "boolean"),
        ([1, 2, 3], "number"),
        (["1,234.5", "12", "3"], "number"),
        (["12%", "3.5 %"], "number"),
        (["007", "012", "999"], "category"),
        (["2020-01-02", "2021-12-31"], "datetime"),
        (["13.04.2020", "01.02.2021"], "datetime"),
        (["the cat sat down", "a dog ran away", "birds fly high up"], "text"),
        (["red", "blue", "red", "red"], "category"),
    ],
)
def test_guess(cells: list, kind: str) -> None:
    assert guessed(cells) == kind


def test_letterbox_keeps_the_aspect_and_fills_with_gray() -> None:
    made = decoded(saved(Image.new("RGB", (40, 10), (255, 0, 0))), (20, 20))
    assert made.shape == (3, 20, 20) and made.dtype == np.uint8
    assert (made[:, :7] == 128).all() and (made[:, 13:] == 128).all()
    assert (made[0, 8:12] == 255).all() and (made[1:, 8:12] == 0).all()


def test_same_size_is_exact() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    assert (decoded(saved(Image.fromarray(pixels)), (16, 24)) == pixels.transpose(2, 0, 1)).all()


def test_exif_orientation() -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8] = 255  # upper half white
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    made = decoded(saved(Image.fromarray(pixels), exif=exif.tobytes()), (16, 16))
    assert (made[:, :8] == 0).all() and (made[:, 8:] == 255).all()


def test_transparency_lies_on_white_and_16_bits_are_scaled() -> None:
    clear = decoded(saved(Image.new("RGBA", (8, 8), (255, 0, 0, 0))), (8, 8))
    assert (clear == 255).all()
    half = decoded(saved(Image.new("LA", (8, 8), (0, 128))), (8, 8))
    assert abs(int(half[0, 0, 0]) - 127) <= 1
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    assert decoded(saved(palette), (8, 8))[:, 0, 0].tolist() == [10, 200, 30]
    assert (decoded(saved(palette, transparency=1), (8, 8)) == 255).all()
    deep = decoded(saved(Image.fromarray(np.full((8, 8), 257 * 100, np.uint16))), (8, 8))
    assert (deep == 100).all()
    cmyk = decoded(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"), (8, 8))
    assert cmyk[0].min() > 200 and cmyk[1:].max() < 60


def test_bad_pictures() -> None:
    whole = saved(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)), "JPEG")
    for data, reason in (
        (whole[: len(whole) // 2], "broken"),
        (b"hello, I am a text", "not a picture"),
        (b"", "no bytes"),
        (bomb(), "pixels"),
        (bomb(10_100, 10_000), "pixels"),
    ):
        with pytest.raises(Bad, match=reason):
            decoded(data, (32, 32))


def test_paths_outside_are_refused(tmp_path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out.png").write_bytes(saved(Image.new("RGB", (8, 8))))
    for cell in ("../out.png", str(tmp_path / "out.png")):
        with pytest.raises(Bad, match="outside"):
            Place(tmp_path / "in").source(cell)
        assert Place(tmp_path / "in", allow_outside=True).source(cell).is_file()
    with pytest.raises(Bad, match="root"):
        Place(None).source("out.png")
    assert Place(tmp_path).source("out.png").name == "out.png"


def test_image_size_follows_the_pictures() -> None:
    wide = saved(Image.new("RGB", (400, 100)))
    small = saved(Image.new("L", (28, 28)))
    turned = saved(Image.new("RGB", (100, 50)))
    upright = saved(Image.new("RGB", (50, 100)))
    assert fitted("image", [wide] * 3)["size"] == [56, 224]
    assert fitted("image", [small] * 3)["size"] == [32, 32]
    assert fitted("image", [turned, upright])["size"] == [104, 104]
    assert fitted("image", [wide], image_size=[64, 64])["size"] == [64, 64]


def wav(wave: np.ndarray, rate: int, subtype: str = "PCM_16") -> bytes:
    out = io.BytesIO()
    soundfile.write(out, wave, rate, format="WAV", subtype=subtype)
    return out.getvalue()


def test_sound_is_mixed_resampled_and_cut() -> None:
    t = np.arange(44_100) / 44_100
    tone = 0.5 * np.sin(2 * np.pi * 440 * t)
    stereo = wav(np.stack([tone, tone], 1), 44_100)
    params = fitted("audio", [stereo])
    assert params["rate"] == 16_000 and params["samples"] == 16_000
    made = KINDS["audio"].encode(stereo, params, HERE)
    wanted = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert made.dtype == np.int16 and np.abs(made[200:-200] / 32767 - wanted[200:-200]).max() < 0.01
    place = Place()
    cut = KINDS["audio"].encode(stereo, {**params, "samples": 1600}, place)
    assert len(cut) == 1600 and place.notes == {"too long": 1}


def test_bad_sounds() -> None:
    params = {"rate": 8000, "seconds": 1.0, "samples": 8000}
    noise = np.random.default_rng(0).normal(size=4000).clip(-3, 3) / 3
    whole = wav(noise, 8000)
    broken = noise.copy()
    broken[7] = np.nan
    for data, reason in (
        (whole[: len(whole) // 2], "truncated"),
        (wav(noise[:0], 8000), "without samples"),
        (wav(broken, 8000, "FLOAT"), "finite"),
        (b"RIFF", "not a sound"),
        (b"", "no bytes"),
    ):
        with pytest.raises(Bad, match=reason):
            KINDS["audio"].encode(data, params, HERE)


TEXTS = ["The cat sat on the mat.", "A dog ran in the park", "Größe und Maß", "the cat and the dog"] * 5


def test_texts_have_fixed_special_ids_and_are_deterministic() -> None:
    params = fitted("text", TEXTS)
    assert [params[k] for k in ("pad", "unk", "cls", "sep", "mask")] == [0, 1, 2, 3, 4]
    assert params == fitted("text", TEXTS)
    kind = KINDS["text"]
    ids = kind.encode("THE  ＣＡＴ", params, HERE)
    assert ids[0] == 2 and ids[-1] == 3 and (ids[1:-1] > 4).all()
    assert tokenizer_of(params["tokenizer"]).decode(ids[1:-1].tolist()).split() == ["the", "cat"]
    for blank in ("", "  \t"):
        with pytest.raises(Missing):
            kind.encode(blank, params, HERE)


def test_long_texts_are_counted() -> None:
    params, place = fitted("text", TEXTS, max_tokens=6), Place()
    assert params["max_tokens"] == 6
    ids = KINDS["text"].encode("cat " * 50, params, place)
    assert len(ids) == 6 and ids[0] == 2 and ids[-1] == 3 and place.notes == {"too long": 1}


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40).filter(lambda t: t.strip()))
def test_no_character_is_unknown(text: str) -> None:
    params = fitted("text", TEXTS)
    try:
        ids = KINDS["text"].encode(text, params, HERE)
    except Missing:
        return
    assert 1 not in ids[1:-1] and ids.max() < params["vocab"]


def test_published_tokenizer_keeps_its_own_special_ids(tmp_path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "cat": 4, "dog": 5}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    params = fitted("text", ["cat dog"], tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert (params["pad"], params["cls"], params["sep"], params["unk"], params["mask"]) == (1, 0, 2, 3, None)
    assert KINDS["text"].encode("dog bird", params, HERE).tolist() == [0, 5, 3, 2]


def test_numbers_are_standardised_and_outliers_do_not_explode() -> None:
    x = np.random.default_rng(0).normal(7, 3, 1000)
    params = fitted("number", x.tolist())
    made = KINDS["number"].encode_column(column([*x.tolist(), 1e300, None, float("nan"), float("-inf")]), params, HERE)
    assert params["log"] is None
    values = made.values[:1000, 0]
    assert abs(values.mean()) < 1e-3 and abs(values.std() - 1) < 1e-3
    assert made.values[1000:, 0].tolist() == [10, 0, 0, 0]
    assert made.real[1000:].tolist() == [True, False, False, False]
    assert [row for row, _ in made.bad] == [1002, 1003]
    assert np.allclose(KINDS["number"].undo(values, params), x, atol=1e-4)


def test_heavy_tails_use_a_logarithm() -> None:
    x = np.exp(np.random.default_rng(0).normal(0, 4, 1000))
    params = fitted("number", x.tolist())
    values = KINDS["number"].encode_column(column(x.tolist()), params, HERE).values[:, 0]
    assert params["log"] is not None
    assert np.corrcoef(np.argsort(np.argsort(x)), values)[0, 1] > 0.8 and len(np.unique(values)) == 1000
    assert np.allclose(KINDS["number"].undo(values, params), x, rtol=1e-3, atol=1e-3)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True) | st.none(), min_size=1, max_size=30))
def test_any_numbers_stay_within_ten(cells: list) -> None:
    cells = [*cells, 1.0]
    params = fitted("number", cells)
    made = KINDS["number"].encode_column(column(cells), params, HERE)
    assert np.isfinite(made.values).all() and np.abs(made.values).max() <= 10
    assert made.real.tolist() == [c is not None and math.isfinite(c) for c in cells]


@pytest.mark.parametrize(
    ("cells", "wanted"),
    [
        (["1,234.5", "12", "-3"], [1234.5, 12, -3]),
        (["12%", "3.5 %", "1%"], [12, 3.5, 1]),
        (["1,5", "2,25", "1.000,5"], [1.5, 2.25, 1000.5]),
    ],
)
def test_written_numbers(cells: list[str], wanted: list[float]) -> None:
    params = fitted("number", cells)
    made = KINDS["number"].encode_column(column([*cells, "many"]), params, HERE)
    assert np.allclose(KINDS["number"].undo(made.values[:3, 0], params), wanted, rtol=1e-4)
    assert made.bad == [(3, "not a number")]


def test_categories() -> None:
    params = fitted("category", ["b", "a", "b", None, " b ", ""])
    assert params["values"] == ["b", "a"]
    place = Place()
    made = KINDS["category"].encode_column(column(["a", "b", "c", None]), params, place)
    assert made.values[:, 0].tolist() == [2, 1, 0, 0] and made.real.tolist() == [True, True, False, False]
    assert place.notes == {"never seen": 1} and made.bad == []
    whole = fitted("category", [1, 2, 2])
    assert KINDS["category"].encode_column(column([2.0, 1.0]), whole, HERE).values[:, 0].tolist() == [1, 2]


def test_booleans() -> None:
    made = KINDS["boolean"].encode_column(column(["Yes", "f", "0", "maybe", None]), fitted("boolean", ["yes"]), HERE)
    assert made.values[:, 0].tolist() == [2, 1, 1, 0, 0] and made.bad == [(3, "neither yes nor no")]


def test_dates() -> None:
    cells = ["2020-01-01", "2020-07-01", "2021-01-01 06:00", "2021-12-31T23:59:59+01:00"]
    params = fitted("datetime", cells)
    made = KINDS["datetime"].encode_column(column([*cells, "31.02.2020", None]), params, HERE)
    assert made.values.shape == (6, 8) and made.bad == [(4, "not a date")]
    assert made.real.tolist() == [True] * 4 + [False] * 2 and not made.values[4:].any()
    names = KINDS["datetime"].features
    july = dict(zip(names, made.values[1]))
    assert july["month_cos"] == pytest.approx(-1, abs=1e-6) and july["hour_cos"] == pytest.approx(1)
    six = dict(zip(names, made.values[2]))
    assert six["hour_sin"] == pytest.approx(1) and six["year"] > july["year"] and six["days"] > july["days"]
    monday = KINDS["datetime"].encode("2024-01-01", params, HERE)
    assert monday[names.index("weekday_cos")] == pytest.approx(1)


def test_day_comes_first_unless_the_column_says_otherwise() -> None:
    assert fitted("datetime", ["03/04/2020", "04/05/2020"])["style"]["first"] == "day"
    assert fitted("datetime", ["03/04/2020", "04/25/2020"])["style"]["first"] == "month"


def test_vectors() -> None:
    cells = [[1.0, 10.0], [3.0, 30.0], [1.0]]
    params = fitted("vector", cells)
    assert params["width"] == 2
    assert KINDS["vector"].encode([3.0, 10.0], params, HERE).tolist() == [1, -1]
    assert KINDS["vector"].encode("[3, 10]", params, HERE).tolist() == [1, -1]
    for cell, reason in (
        ([1.0], "length"),
        ([1.0, float("nan")], "finite"),
        ("[1, ", "not a vector"),
        ([None, 1.0], "not a vector"),
        ([], "empty"),
    ):
        with pytest.raises(Bad, match=reason):
            KINDS["vector"].encode(cell, params, HERE)
