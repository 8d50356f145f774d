"""Restoring pictures: the measures against independent ones, and a run from a table to files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits

import plait
from plait.data.augment import augment
from plait.data.rows import Rows
from plait.data.schema import Schema
from plait.data.table import read_table
from plait.errors import DataError, UsageError
from plait.runs.console import Console
from plait.tasks.restore import psnr, ssim
from tests.peers import declare_torchvision

QUIET = Console(quiet=True)


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def noisy(n: int, seed: int = 0, spread: float = 60) -> dict[str, list]:
    """Handwritten digits, and the same with noise."""
    rng = np.random.default_rng(seed)
    found = load_digits().images[rng.permutation(1797)[:n]] * 15.9
    clean = [np.asarray(Image.fromarray(d.astype(np.uint8)).resize((32, 32), Image.BILINEAR), float) for d in found]
    return {"noisy": [png(c + rng.normal(0, spread, c.shape)) for c in clean], "clean": [png(c) for c in clean]}


def fit(rows: dict, folder: Path, **more):
    how = {"system": "vit_toy", "task": "restore", "target": "clean", "inputs": ["noisy"], "precision": "fp32"}
    return plait.fit(rows, out=folder, console=QUIET, **(how | {"epochs": 4, "lr": 3e-3, "batch_size": 16} | more))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fit(noisy(200), tmp_path_factory.mktemp("restore") / "run")


def pair(shape: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=g)
    return x, (x + 0.2 * torch.randn(shape, generator=g)).clamp(0, 1)


@pytest.mark.parametrize("shape", [(3, 3, 24, 31), (2, 1, 11, 40)])
def test_measures_equal_torchmetrics(shape) -> None:
    declare_torchvision()
    image = pytest.importorskip("torchmetrics.functional.image")
    x, y = pair(shape)
    for i in range(len(x)):
        one = x[i : i + 1].double(), y[i : i + 1].double()
        assert psnr(*one).item() == pytest.approx(image.peak_signal_noise_ratio(*one, data_range=1.0).item(), rel=1e-6)
        _, whole = image.structural_similarity_index_measure(*one, data_range=1.0, return_full_image=True)
        theirs = whole[..., 5:-5, 5:-5].mean().item()  # it reflects pictures at their border; windows within them agree
        assert ssim(*one).item() == pytest.approx(theirs, rel=1e-6)


def test_measures_by_their_definition() -> None:
    """As scikit-image does with gaussian_weights and use_sample_covariance=False, the border cut away."""
    x, y = (t.double().numpy() for t in pair((2, 3, 20, 26), 1))
    for i in range(2):
        wanted = 10 * np.log10(1 / np.mean((x[i] - y[i]) ** 2))
        assert psnr(*(torch.from_numpy(t[i : i + 1]) for t in (x, y))).item() == pytest.approx(wanted, rel=1e-9)
        maps = []
        for a, b in zip(x[i], y[i]):
            u, v, uu, vv, uv = (gaussian_filter(z, 1.5, truncate=3.5) for z in (a, b, a * a, b * b, a * b))
            top = (2 * u * v + 1e-4) * (2 * (uv - u * v) + 9e-4)
            maps.append(top / ((u * u + v * v + 1e-4) * (uu - u * u + vv - v * v + 9e-4)))
        wanted = np.stack(maps)[:, 5:-5, 5:-5].mean()
        assert ssim(*(torch.from_numpy(t[i : i + 1]) for t in (x, y))).item() == pytest.approx(wanted, rel=1e-9)


def test_equal_and_tiny_pictures() -> None:
    x, y = pair((2, 3, 5, 7))
    assert psnr(x, x).tolist() == [100, 100] and ssim(x, x).tolist() == pytest.approx([1, 1])
    assert (ssim(x, y) < 1).all() and (psnr(x, y) < 30).all()


def test_it_beats_the_picture_as_it_is(run) -> None:
    found = run.assessments["test"]
    scores, floor = ({s.name: s for s in part} for part in (found.scores, found.baseline))
    assert list(scores) == ["PSNR", "SSIM"] and scores["PSNR"].n == len(found.index) == 20
    assert scores["PSNR"].low > floor["PSNR"].high + 1 and scores["SSIM"].low > floor["SSIM"].high
    batch = Rows(read_table(noisy(200)), run.schema, asked=True).batch(found.index)
    error = (batch["target"]["clean"].double() - batch["image"].double()).square().mean((1, 2, 3))
    assert floor["PSNR"].value == pytest.approx(float(-10 * error.log10().mean()), rel=1e-6)


def test_answers_are_files_that_the_table_names(run, tmp_path) -> None:
    rows = noisy(30, seed=5)
    rows["noisy"][4], rows["noisy"][7] = None, b"no picture"
    answers = plait.load(run.folder).predict({"noisy": rows["noisy"]}, out=tmp_path / "out" / "made.csv")
    paths = answers["clean"].to_pylist()
    assert answers.column_names == ["row", "clean", "unread"] and answers["unread"].to_pylist()[7] == "noisy"
    assert paths[3] == "made_clean/000003.png" and len(set(paths)) == 30
    made = [np.asarray(Image.open(tmp_path / "out" / p), float) for p in paths]
    assert made[0].shape == (32, 32, 3) and (made[4] == made[7]).all()  # nothing given: the usual picture
    real = [np.asarray(Image.open(io.BytesIO(c)).convert("RGB"), float) for c in rows["clean"]]
    given = [np.asarray(Image.open(io.BytesIO(c)).convert("RGB"), float) for c in rows["noisy"][:4]]
    for i in range(4):
        assert np.square(made[i] - real[i]).mean() < 0.7 * np.square(given[i] - real[i]).mean()
    table = read_table(tmp_path / "out" / "made.csv")  # and is read again as a table of pictures
    assert Schema.guess(table).column("clean").kind == "image"
    alone = run.predict({"noisy": rows["noisy"][:2]})["clean"].to_pylist()
    assert [Image.open(io.BytesIO(c)).size for c in alone] == [(32, 32)] * 2
    again = run.evaluate(rows)
    assert again.scores[0].n == 30, "a row whose picture is missing is scored as it is answered"


def test_the_report_shows_what_was_given_and_made(run) -> None:
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "Examples: the best and the worst answers" in page and page.count("data:image/png") >= 3 * 12


def test_target_and_input_move_together() -> None:
    rows = noisy(24)
    rows["noisy"] = rows["clean"]  # equal before, so equal after
    rows["noisy"] = [*rows["noisy"][:-1], None]
    table = read_table(rows)
    schema = Schema.guess(table, target="clean", kinds={"clean": "image", "noisy": "image"}).fit(table, np.arange(24))
    batch = Rows(table, schema, asked=True).batch(np.arange(24))
    moved = augment(batch, schema, torch.Generator().manual_seed(0), whole=True)
    assert torch.equal(moved["image_0"][:-1], moved["target"]["clean"][:-1])
    assert not torch.equal(moved["image_0"], batch["image_0"]) and not moved["image_0"][-1].any()
    sums = moved["image_0"][:-1].flatten(1).sort(1).values  # whole pixels: but for the border the same values
    near = (sums - batch["image_0"][:-1].flatten(1).sort(1).values).abs().mean()
    assert near < 0.05


def test_a_fuser_restores_too_and_what_cannot_work_is_refused(tmp_path) -> None:
    rows = noisy(40)
    made = fit(
        rows | {"kind": ["a", "b"] * 20}, tmp_path / "auto", system="auto_toy", inputs=["noisy", "kind"], epochs=1
    )
    assert made.predict({"noisy": rows["noisy"][:3]})["clean"].to_pylist()[0][:4] == b"\x89PNG"
    assert set(made.assessments["test"].alone) == {"noisy", "kind"}
    with pytest.raises(DataError, match="one column of pictures, got noisy .image., twice"):
        fit(rows | {"twice": rows["noisy"]}, tmp_path / "b", system="auto_toy", inputs=["twice", "noisy"])
    with pytest.raises(UsageError, match="cannot restore"):
        fit(rows, tmp_path / "c", system="git_toy")
