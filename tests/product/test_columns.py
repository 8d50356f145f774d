"""From a column to an answer: the same cells and labels in training, evaluation and prediction, and nothing that cannot
be right leaves a score."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image
from sklearn import metrics as sk

import plait
from plait.cli import main
from plait.errors import DataError
from plait.runs.console import Console

N = 80
X = np.random.default_rng(0).normal(size=N).round(2)
YES = X > 0


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def fit(source, out: Path, **options) -> plait.Run:
    usual = dict(system="auto_toy", epochs=1, precision="fp32", folds=1, console=Console(quiet=True))
    return plait.fit(source, out=out / "run", **usual | options)


def words(*texts: str) -> tuple[int, str]:
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        code = main(texts)
    return code, out.getvalue()


def test_one_row_is_answered_as_it_is_among_others(tmp_path) -> None:
    """The training file has decimal commas; 2.500 is two thousand five hundred in a table of its own too."""
    rng = np.random.default_rng(1)
    sales = rng.uniform(100, 3000, 100).round(1)
    lines = [f"{v:,.1f}".replace(",", " ").replace(".", ",").replace(" ", ".") for v in sales]
    lines = [line.removesuffix(",0") + f";{'high' if v > 1300 else 'low'}" for line, v in zip(lines, sales)]
    (tmp_path / "t.csv").write_text("sales;y\n" + "\n".join(lines) + "\n")
    run = fit(tmp_path / "t.csv", tmp_path, target="y", epochs=5)
    run = plait.load(run.folder)
    (tmp_path / "one.csv").write_text("sales\n2.500\n")
    alone = run.predict(tmp_path / "one.csv").to_pylist()[0]
    for source in ({"sales": ["2.500", "1,5"]}, {"sales": [2500.0]}, {"sales": ["2 500,00", "?"]}):
        assert run.predict(source).to_pylist()[0] == alone
    assert alone["y"] == "high" and run.predict({"sales": ["2,500"]}).to_pylist()[0]["y"] == "low"


def test_rows_of_classes_that_were_never_learnt_are_wrong_in_every_score(tmp_path) -> None:
    train, third = (
        ["a" if v else "b" for v in YES],
        ["c" if v > 0.8 else "d" if v < -1 else "a" if v > 0 else "b" for v in X],
    )
    pd.DataFrame({"x": X, "y": third}).to_csv(tmp_path / "t.csv", index=False)
    run = fit({"x": X, "y": train}, tmp_path, target="y", test=str(tmp_path / "t.csv"), epochs=5)
    found = run.evaluate({"x": X, "y": third})
    told = run.predict({"x": X}).column("y").to_pylist()
    for assessment in (run.assessments["test"], found):
        scores = {s.name: s for s in assessment.scores}
        assert len(assessment.index) == N and scores["accuracy"].n == N
        assert (
            scores["accuracy"].value == pytest.approx(sk.accuracy_score(third, told)) and scores["accuracy"].value < 0.9
        )
        assert scores["accuracy"].high < 1 and scores["log loss"].high > scores["log loss"].value > 1
        right = sk.recall_score(third, told, average="macro", labels=list("abcd"), zero_division=0)
        assert scores["balanced accuracy"].value == pytest.approx(right)
        f1 = sk.f1_score(third, told, average="macro", labels=list("abcd"), zero_division=0)
        assert scores["macro F1"].value == pytest.approx(f1)
        floor = {s.name: s.value for s in assessment.baseline}
        assert floor["accuracy"] == pytest.approx(np.mean([c == max("ab", key=train.count) for c in third]))
    run.evaluate({"x": X, "y": third})
    assert run.last_bad.by_reason() == {
        "a class that no training row has: counted as wrong": sum(c in "cd" for c in third)
    }
    nothing = run.evaluate({"x": X, "y": ["e"] * N})
    assert nothing.scores[0].value == 0 and "counted as wrong" in (run.folder / "report.html").read_text()


def test_labels_that_are_whole_numbers_are_answered_as_such(tmp_path) -> None:
    tags = [[1, 20] if v else [3] for v in YES]
    run = fit({"x": X, "y": tags}, tmp_path, target="y", epochs=5)
    told = plait.load(run.folder).predict({"x": X}).column("labels")
    right = np.mean([a == b for a, b in zip(told.to_pylist(), tags)])
    assert told.type == pa.list_(pa.int64()) and right > 0.9
    for truth in (tags, [[str(t) for t in row] for row in tags]):
        found = {s.name: s.value for s in run.evaluate({"x": X, "y": truth}).scores}
        assert found["exact match"] == pytest.approx(right)


def test_labels_that_were_never_learnt_are_missed(tmp_path) -> None:
    tags = [["red"] if v else ["big", "new"] for v in YES]
    other = [["red"] if v else ["big", "new", "odd"] for v in YES]  # all that was learnt, and one more
    run = fit({"x": X, "tags": tags}, tmp_path, target="tags", epochs=5)
    assert run.task.labels == ["big", "new", "red"] and run.task.name == "classify_many"
    told = run.predict({"x": X}).column("labels").to_pylist()
    for truth in (tags, other):
        found = {s.name: s.value for s in run.evaluate({"x": X, "tags": truth}).scores}
        assert found["exact match"] == pytest.approx(np.mean([set(t) == set(a) for t, a in zip(truth, told)]))
    assert found["exact match"] < 0.7


TYPED = {
    "int": (YES.astype(int).tolist(), pa.int64()),
    "float": (YES.astype(float).tolist(), pa.float64()),
    "bool": (YES.tolist(), pa.bool_()),
    "text": (["yes " if v else "no" for v in YES], pa.string()),
    "date": (pd.to_datetime(["2020-01-01" if v else "2021-06-01" for v in YES]), pa.timestamp("us")),
    "blank": (["x" if v else None for v in YES], pa.string()),
    "huge": ([2**53 + int(v) for v in YES], pa.int64()),
    "bytes": ([b"\xff" if v else b"\xfe\x00" for v in YES], pa.binary()),
}


@pytest.mark.parametrize("name", TYPED)
def test_answers_are_of_the_type_of_the_training_table(name: str, tmp_path) -> None:
    cells, kind = TYPED[name]
    run = fit({"x": X, "y": cells}, tmp_path, target="y", task="classify", epochs=3)
    told = plait.load(run.folder).predict({"x": X}, out=tmp_path / "a.csv").column("y")
    assert told.type == kind and len(pd.read_csv(tmp_path / "a.csv")) == N
    truth = pa.array(cells).cast(kind).to_pylist()
    truth = [v.strip() if isinstance(v, str) else v for v in truth]
    assert (
        np.mean([t == a for t, a in zip(told.to_pylist(), truth)])
        == run.evaluate({"x": X, "y": cells}).scores[0].value
        > 0.8
    )


@pytest.mark.parametrize("target", ["probability", "row", "unread", "p(hi)"])
def test_what_is_told_beside_an_answer_never_takes_its_name(target: str, tmp_path) -> None:
    run = fit({"x": X, target: ["hi" if v else "lo" for v in YES], "y": X[::-1]}, tmp_path, target=target)
    told = run.predict({"x": X, "y": X[::-1]}, out=tmp_path / "a.csv")
    assert set(told.column(target).to_pylist()) <= {"hi", "lo"} and len(set(told.column_names)) == 6
    assert pd.read_csv(tmp_path / "a.csv").columns.tolist() == told.column_names


def test_an_input_of_the_same_name_stands_beside_what_is_told(tmp_path) -> None:
    run = fit({"probability": X, "row": X[::-1], "y": ["hi" if v else "lo" for v in YES]}, tmp_path, target="y")
    told = run.predict({"probability": X, "row": X})
    assert not {"probability", "row"} & set(told.column_names) and len(told.column_names) == 6


def test_of_very_many_classes_the_likeliest_are_told(tmp_path) -> None:
    classes = [f"c{i % 60}" for i in range(180)]
    run = fit({"x": np.arange(180.0) % 60, "z": np.arange(180) % 7, "y": classes}, tmp_path, target="y")
    told = run.predict({"x": [3.0, 4.0], "z": [1, 2]})
    names = ["row", "y", "probability", *[f"{n} {i}" for i in range(2, 6) for n in ("answer", "probability")], "unread"]
    assert told.column_names == names
    first = told.to_pylist()[0]
    chances = [first["probability"], *[first[f"probability {i}"] for i in range(2, 6)]]
    assert (
        chances == sorted(chances, reverse=True)
        and len({first["y"], *[first[f"answer {i}"] for i in range(2, 6)]}) == 5
    )


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_whole_numbers_here_and_decimals_there_are_numbers(form: str, tmp_path) -> None:
    write = {"csv": lambda t, p: t.to_csv(p, index=False), "parquet": lambda t, p: t.to_parquet(p)}[form]
    ages = np.arange(N) % 50
    answers = np.where(ages > 25, "old", "young")
    write(pd.DataFrame({"age": ages, "y": answers}), tmp_path / f"train.{form}")
    write(pd.DataFrame({"age": ages + 0.25, "y": answers}), tmp_path / f"test.{form}")
    run = fit(tmp_path / f"train.{form}", tmp_path, target="y", test=str(tmp_path / f"test.{form}"), epochs=3)
    assert run.assessments["test"].scores[0].value > 0.9 and run.schema.column("age").kind == "number"
    texts = {"age": [f"{a:.2f} " for a in ages], "y": answers}
    assert run.evaluate(texts).scores[0].n == N
    with pytest.raises(DataError, match="lacks the column 'age'"):
        fit(tmp_path / f"train.{form}", tmp_path / "b", target="y", test={"agee": [1], "y": ["old"]})


def test_columns_of_any_name_from_the_command_line(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    frame = pd.DataFrame({"size, m2": X, 'say "x"': X[::-1], "price, EUR": 3 * X + 1, "n": np.arange(N) % 7})
    frame.to_csv("t.csv", index=False)
    usual = (
        "fit",
        "t.csv",
        "--system",
        "auto_toy",
        "--epochs",
        "1",
        "--folds",
        "1",
        "--precision",
        "fp32",
        "--target",
        "price, EUR",
    )
    code, said = words(*usual, "--inputs", "size, m2", "--inputs", 'say "x"', "--kind", "size, m2=number", "-o", "run")
    assert code == 0, said
    assert plait.load("run").schema.inputs == ["size, m2", 'say "x"'] and plait.load("run").task.target == "price, EUR"
    code, said = words(*usual, "--inputs", '"size, m2",n', "--kind", "n=category,size, m2=number", "--dry-run")
    assert code == 2 and "m2" in said  # a comma that parts pairs is one where each has its =
    code, said = words(*usual, "--inputs", '"size, m2",n', "--kind", 'n=category,"size, m2=number"', "--dry-run")
    assert code == 0 and "n category" in said, said
    code, said = words("predict", "run", "t.csv", "-o", "a.csv")
    assert code == 0 and "price, EUR" in Path("a.csv").read_text().splitlines()[0]


def test_what_cannot_be_read_or_scored_is_said(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    answers = ["hi" if v else "lo" for v in YES]
    frame = pd.DataFrame({"x": X, "photo": [f"gone/{i}.png" for i in range(N)], "y": answers})
    frame.to_csv("t.csv", index=False)
    code, said = words(
        "fit",
        "t.csv",
        "--target",
        "y",
        "--system",
        "auto_toy",
        "--epochs",
        "1",
        "--folds",
        "1",
        "--image-size",
        "32",
        "-o",
        "run",
    )
    assert code == 0 and "NO CELL of 'photo' can be read: 80 x no such file" in said and str(tmp_path) in said
    frame.assign(y=[a if i % 4 else None for i, a in enumerate(answers)]).to_csv("e.csv", index=False)
    code, said = words("evaluate", "run", "e.csv")
    assert code == 0 and "60 rows; not scored: 20 x no target" in said and "NO CELL of 'photo'" in said
    code, said = words("check", "t.csv", "--target", "y")
    assert code == 0 and "careful: NO CELL of 'photo'" in said


def test_texts_that_repeat_can_be_searched_by(tmp_path) -> None:
    rng, cells = np.random.default_rng(0), []
    for i in range(48):
        out = io.BytesIO()
        pixels = np.clip(np.full((32, 32, 3), 40 * (i % 6)) + rng.integers(0, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(out, "PNG")
        cells.append(out.getvalue())
    table = {"photo": cells, "caption": [f"a tile of gray {i % 6}" for i in range(48)]}
    run = fit(table, tmp_path, task="retrieve", inputs=["photo", "caption"])
    assert run.schema.column("caption").kind == "text" and len(run.search(table, text="a tile of gray 3", k=3)) == 3
