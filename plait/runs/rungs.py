"""What frozen towers gained over none: the same table is also fitted from nothing, and the better one answers."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from plait.data.rows import Rows
from plait.evaluate.intervals import Score
from plait.evaluate.metrics import paired_gain
from plait.evaluate.report import Section, Table
from plait.runs.console import Console
from plait.runs.folder import read_json, write_json
from plait.runs.job import TableJob
from plait.runs.predict import answered
from plait.runs.run import Run

BELOW, ABOVE = "from_nothing", "on_towers"  # the folder of the one that does not answer, in that of the one that does


def weigh(run: Run, below: Run, job: TableJob, console: Console) -> Run:
    """The one of two runs on the same rows that answers: that on towers where its loss on the validation rows is lower
    by two standard errors. Both reports say so, and the folder of `run` is the one that answers, which holds the other.
    """
    gain = _losses(below, job) - _losses(run, job)
    mean, error = float(gain.mean()), float(gain.std() / max(len(gain) - 1, 1) ** 0.5)
    higher = mean > 0 and mean >= 2 * error
    kept = run if higher else below
    which = "frozen towers answer" if higher else "the model from nothing answers: towers gained no more than noise"
    said = f"validation loss {-mean:+.3f} [{-mean - 2 * error:+.3f}, {-mean + 2 * error:+.3f}] by towers"
    console.say("rungs", f"{which}; {said}")
    scores: dict[str, dict[str, dict]] = {}
    lines: list[tuple] = []
    for name, ours in run.assessments.items():
        theirs = below.assessments[name]
        if theirs is ours:  # by folds, each of which was weighed itself
            continue
        task, won = run.task, _paired(run, below, name)
        a, b = task.headline(ours.scores)[0], task.headline(theirs.scores)[0]
        scores[name] = {"on_towers": a.to_json(), "from_nothing": b.to_json(), "gain": won.to_json()}
        lines += [(f"on frozen towers, {name}", a.name, a), (f"from nothing, {name}", b.name, b)]
        lines.append((f"gain by row, {name}", "", won))
        console.say("", f"{name}: {a} on towers   {b.value:.3f} from nothing   gain {_interval(won)}")
    loss = {"mean": mean, "standard_error": error, "rows": len(gain)}
    facts = {"answers": ABOVE if higher else BELOW, "validation_loss_gain": loss, "splits": scores}
    section = Section("Which rung answers", "table", Table(("model", "score", "value [95% interval]"), lines))
    remark = Section("Why", "text", f"{which}; {said}.")
    for found in (run, below):
        write_json(found.folder / "report.json", read_json(found.folder / "report.json") | {"rungs": facts})
        assert found.report is not None  # both were just trained
        found.report([section, remark])
    return kept if higher else _swapped(run, below)


def _losses(run: Run, job: TableJob) -> np.ndarray:
    """(n,): of the rows that watched the training."""
    if run.losses is not None:
        return run.losses
    data = job.data
    rows = data.rows
    if run.schema is not data.schema:
        rows = Rows(data.table, run.schema, allow_outside=data.rows.allow_outside, workers=rows.workers, asked=True)
        run.task.derive(rows.scan())
    return run.task.loss_rows(*answered(run.task, run.model, rows, job.watch, precision=run.precision))


def _paired(run: Run, below: Run, name: str) -> Score:
    ours, theirs = run.assessments[name], below.assessments[name]
    shares = run.task.shares(ours.truth)
    a, b = run.task.per_row(ours.truth, ours.answers), run.task.per_row(theirs.truth, theirs.answers)
    return paired_gain(a * shares, b * shares)


def _interval(gain: Score) -> str:
    return f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"


def _swapped(run: Run, below: Run) -> Run:
    """`below`, in the place of the run that holds it, which it then holds. Two renames, so that no file is ever of one
    and the next of the other."""
    place = run.folder
    aside = place.with_name(f"{place.name}.{BELOW}")
    below.folder.rename(aside)
    try:
        place.rename(aside / ABOVE)
    except OSError:
        aside.rename(place / BELOW)
        raise
    aside.rename(place)
    run.folder, below.folder = place / ABOVE, place
    for found in (run, below):
        report = found.report
        assert isinstance(report, partial)
        found.report = partial(report.func, Path(found.folder) / "report.html", *report.args[1:])
    return below
