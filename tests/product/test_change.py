"""`plait change`: a trained run adapted, merged, pruned and quantised is a run, here and in another process."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import plait
from plait.cli import main
from plait.errors import UsageError
from plait.methods.quantization.int8 import Int8Linear
from plait.methods.token_reduction.tome import MergingBlock
from plait.parts.adapters import LoRALinear
from plait.runs.console import Console
from tests.product.test_changed_runs import equal, home, train, weights  # noqa: F401

SMALL = ["tome:r=2", "taylor_pruning:share=0.5", "int8"]
ELSEWHERE = """
import sys, torch, plait, pyarrow.parquet as pq
folder, table, program, out = sys.argv[1:]
run = plait.load(folder)
pq.write_table(run.predict(table), out)
given, want = torch.load(program + ".pt")
with torch.no_grad():
    here = run.model.answer(given)
    exported = torch.export.load(program).module()(given)
for name in want:
    torch.testing.assert_close(here[name], want[name], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(exported[name], want[name], rtol=1e-5, atol=1e-5)
"""


class Answer(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        return self.model.answer(batch)


@pytest.fixture(scope="module")
def tuned(home):  # noqa: F811
    return train(home, "tuned", methods=["lora:rank=2,targets=all"], lr=0.01)


@pytest.fixture(scope="module")
def small(home, tuned):  # noqa: F811
    return plait.change(tuned.folder, SMALL, out=home / "small", merge=True)


def answers(run, home):  # noqa: F811
    return run.predict(home / "digits.parquet")


def numbers(table: pa.Table) -> np.ndarray:
    columns = [c for c, t in zip(table.column_names, table.schema.types) if pa.types.is_floating(t)]
    return np.stack([table.column(c).to_numpy() for c in columns])


def test_only_adapters_learnt_and_merging_keeps_the_answers(home, tuned):  # noqa: F811
    start = plait.create_model("vit_toy", num_classes=0).state_dict()
    kept = {k.removeprefix("bound.system."): v for k, v in weights(tuned.folder).items() if "bound.system." in k}
    assert all(torch.equal(kept[k], v) for k, v in start.items())
    assert all(v.abs().sum() > 0 for k, v in kept.items() if "lora_B" in k)
    merged = plait.change(tuned.folder, out=home / "merged", merge=True)
    assert json.loads((merged.folder / "config.json").read_text())["recipe"]["changes"] == []
    assert not any(isinstance(m, LoRALinear) for m in merged.model.modules())
    assert np.abs(numbers(answers(merged, home)) - numbers(answers(tuned, home))).max() < 1e-5
    plain = plait.load(merged.folder)
    assert numbers(answers(plain, home)).tolist() == numbers(answers(merged, home)).tolist()
    assert all(p.requires_grad for p in plain.model.bound.system.parameters())


def test_it_answers_the_same_in_another_process_and_as_an_exported_program(home, tuned, small, tmp_path):  # noqa: F811
    kinds = [type(m) for m in small.model.modules()]
    assert Int8Linear in kinds and MergingBlock in kinds and LoRALinear not in kinds
    size = [(r.folder / "model.safetensors").stat().st_size for r in (tuned, small)]
    assert size[1] < 0.7 * size[0]
    rows = small.rows(home / "digits.parquet")
    batch = rows.batch(np.arange(5))
    given = {"image": batch["image"], "keep": {}, "present": batch["present"]}
    with torch.no_grad():
        want = small.model.answer(given)
        dim = torch.export.Dim("rows", min=2, max=64)
        shapes = torch.utils._pytree.tree_map(lambda _: {0: dim}, given)
        program = torch.export.export(Answer(small.model).eval(), (given,), dynamic_shapes=(shapes,))
    torch.export.save(program, tmp_path / "program.pt2")
    torch.save((given, want), tmp_path / "program.pt2.pt")
    out = tmp_path / "answers.parquet"
    command = [sys.executable, "-c", ELSEWHERE, small.folder, home / "digits.parquet", tmp_path / "program.pt2", out]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert np.abs(numbers(pq.read_table(out)) - numbers(answers(small, home))).max() < 1e-5


def test_it_trains_on_from_its_weights_and_a_kill_changes_nothing(home, small):  # noqa: F811
    ends = []
    for name, left in (("on", None), ("on-killed", 1), ("on-killed-early", 0)):
        folder = home / name
        if left is None:
            shutil.copytree(small.folder, folder)
        else:
            shutil.copytree(ends[0].folder, folder)
            for checkpoint in sorted((folder / "checkpoints").iterdir())[left:]:
                shutil.rmtree(checkpoint)
            for file in ("model.safetensors", "manifest.json"):
                shutil.copy(small.folder / file, folder)
        ends.append(plait.fit(out=folder, resume=True, console=Console(quiet=True)))
    on, before = weights(ends[0].folder), weights(small.folder)
    assert on.keys() == before.keys() and ends[0].stopped == "finished"
    still = {k for k, v in on.items() if torch.equal(v, before[k])}
    assert {k for k, v in on.items() if v.dtype == torch.int8} <= still
    learnt = [k for k in on if "bound.system" in k and ("norm" in k or "bias" in k) and k not in still]
    assert len(learnt) > 10
    near = [float((on[k] - before[k]).abs().max()) for k in learnt]
    assert max(near) < 0.1  # and not from anew
    assert all(equal(on, weights(end.folder)) for end in ends[1:])


def test_gradients_of_a_sample_say_what_goes(home, tuned):  # noqa: F811
    kept = {}
    for by, sample in (("weights", None), ("gradients", home / "digits.parquet")):
        how = dict(out=home / f"by-{by}", merge=True, sample=sample)
        run = plait.change(tuned.folder, [("taylor_pruning", {"by": by, "share": 0.9})], **how)
        kept[by] = weights(run.folder)
        assert numbers(answers(plait.load(run.folder), home)).tolist() == numbers(answers(run, home)).tolist()
    assert {k: v.shape for k, v in kept["weights"].items()} == {k: v.shape for k, v in kept["gradients"].items()}
    assert not equal(kept["weights"], kept["gradients"])


def test_the_command_line(home, tuned, capsys):  # noqa: F811
    words = ["change", str(tuned.folder), "--out", str(home / "told"), "--merge", "--method", "int8", "--json"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["changes"] == [["int8", {}]] and told["bytes"] > 0
    assert main(words) == 2 and "already exists" in capsys.readouterr().err
    assert main(["predict", str(home / "told"), str(home / "digits.parquet"), "-o", str(home / "told.csv")]) == 0


@pytest.mark.parametrize(
    "how, why",
    [
        (dict(methods=[]), "nothing to change"),
        (dict(methods=["s2_scaling"]), "reads other features"),
        (dict(methods=["taylor_pruning"]), "prune before other methods"),
        (dict(methods=["taylor_pruning:by=gradients"], merge=True), "weights without gradients"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_written(home, tuned, how, why):  # noqa: F811
    with pytest.raises(ValueError, match=why):
        plait.change(tuned.folder, out=home / "never", **how)
    assert not Path(home / "never").exists()


def test_nothing_to_merge_is_said(home, tuned):  # noqa: F811
    plain = plait.change(tuned.folder, out=home / "plain", merge=True)
    with pytest.raises(UsageError, match="nothing beside its weights to merge: its methods are none"):
        plait.change(plain.folder, out=home / "never", merge=True)
