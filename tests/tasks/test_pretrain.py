"""`fit --task pretrain`: pictures of which parts are hidden, and what the run is good for afterwards."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

import plait
from plait.errors import UsageError
from plait.runs.console import Console
from tests.product.test_caption import png


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def table(n: int, seed: int = 0) -> dict[str, list]:
    """Ramps of grey from one side to the other, across or down: what is hidden follows from what is seen."""
    rng = np.random.default_rng(seed)
    rows: dict[str, list] = {"photo": [], "split": []}
    for i in range(n):
        ramp = np.linspace(*rng.permutation([0, 255]), 32)
        pixels = np.broadcast_to(ramp[:, None, None] if rng.integers(2) else ramp[None, :, None], (32, 32, 3))
        rows["photo"].append(png(pixels.astype(np.uint8)))
        rows["split"].append("test" if i % 5 == 0 else "val" if i % 5 == 1 else "train")
    return rows


FAST = dict(task="pretrain", system="crate_mae_toy", inputs=["photo"], split="split", image_size=32, precision="fp32")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    how = FAST | dict(augment=0.0, batch_size=32, epochs=40, lr=4e-3)
    rows = table(300)
    rows["photo"][7] = rows["photo"][0][:60]
    return plait.fit(pa.table(rows), out=tmp_path_factory.mktemp("runs") / "run", console=Console(quiet=True), **how)


def test_what_is_hidden_is_guessed_better_than_blind(run):
    (found,), (blind,) = run.assessments["test"].scores, run.assessments["test"].baseline
    print(found, blind)
    assert found.name == blind.name == "pixels cost" and found.high < 0.8 * blind.low


def test_a_row_is_told_how_odd_it_is_and_always_the_same(run):
    loaded = plait.load(run.folder)
    usual, rng = table(12, seed=3)["photo"], np.random.default_rng(0)
    odd = [png(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)) for _ in range(12)]
    told = loaded.predict(pa.table({"photo": [*usual, *odd, None]}))
    cost = np.array(told["pixels cost"].to_pylist()[:24], float)
    assert np.median(cost[12:]) > 1.5 * np.median(cost[:12])
    assert np.isnan(np.array(told["pixels cost"].to_pylist()[24:], float)).all()
    again = loaded.predict(pa.table({"photo": usual}))["pixels cost"].to_pylist()
    np.testing.assert_allclose(again, cost[:12], rtol=1e-4)


def test_its_weights_begin_a_classifier(run):
    parts = ("cls", "stem.*", "stack.*", "norm.*")
    told = dict(pretrained=run.folder / "model.safetensors", only=parts)
    made = plait.create_model("crate_mae_toy", undo=0, num_classes=3, **told)
    own = run.model.bound.system
    assert torch.equal(made.stack.blocks[0].feed.f.dictionary, own.stack.blocks[0].feed.f.dictionary)
    assert made(torch.rand(2, 3, 32, 32)).shape == (2, 3)


def test_a_system_that_guesses_nothing_is_refused(tmp_path):
    with pytest.raises(UsageError, match="it cannot pretrain. These would: crate_mae"):
        plait.fit(
            pa.table(table(20)), out=tmp_path / "run", console=Console(quiet=True), **FAST | {"system": "vit_toy"}
        )


def test_all_that_is_hidden_counts_and_nothing_else():
    model = plait.create_model("crate_mae_toy", seed=0).eval()
    x, luck = torch.rand(2, 3, 32, 32), {"image": torch.rand(2, 16, generator=torch.Generator().manual_seed(0))}
    hidden = luck["image"].argsort(1).argsort(1) >= 4
    cost = model.guess({"image": x}, luck)["costs"]["pixels"]
    # patches that are seen may be painted anyhow; the pixels of those that are not are not looked at
    mask = hidden.view(2, 1, 4, 1, 4, 1).expand(-1, 3, -1, 8, -1, 8).reshape(2, 3, 32, 32)
    other = torch.where(mask, torch.rand(2, 3, 32, 32), x)
    made: list[torch.Tensor] = []
    hook = model.pixels.register_forward_hook(lambda _, __, y: made.append(y))
    model.guess({"image": x}, luck), model.guess({"image": other}, luck)
    hook.remove()
    assert torch.equal(*made) and not torch.equal(model.guess({"image": other}, luck)["costs"]["pixels"], cost)
    gone = {"image": x, "present": {"image": torch.tensor([True, False])}}
    assert model.guess(gone, luck)["costs"]["pixels"].isnan().tolist() == [False, True]
