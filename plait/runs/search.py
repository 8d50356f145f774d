"""How a run is best trained, tried out: several plans on the same rows, judged by the rows that watch."""

from __future__ import annotations

import copy
import shutil
import warnings
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from plait.errors import DataError, UsageError
from plait.evaluate.intervals import number
from plait.runs.console import Console
from plait.runs.folder import CONFIG, read_json, write_json
from plait.runs.job import TableJob
from plait.train.loop import Plan, train

JOURNAL, TRIALS = "trials.log", "trials.json"


def refuse_without(trials: int | None) -> None:
    """Raises UsageError where there are to be trials, and optuna is not installed."""
    if trials and find_spec("optuna") is None:
        raise UsageError("trials need optuna, which is not installed: pip install 'plait[tune]'")


def drawn(trial: Any, plan: Plan, rows: int) -> Plan:
    """A plan like `plan`, with a rate, a decay and a batch of its own."""
    batches = sorted({min(max(8, int(plan.batch_size * factor)), rows) for factor in (0.5, 1, 2)})
    return replace(
        plan,
        lr=trial.suggest_float("lr", plan.lr / 5, plan.lr * 5, log=True),
        weight_decay=trial.suggest_float("weight_decay", 1e-3, 0.5, log=True),
        batch_size=trial.suggest_categorical("batch_size", batches),
    )


def search(job: TableJob, plan: Plan, folder: Path, trials: int, device: torch.device, console: Console) -> Plan | None:
    """The best of `trials` plans, of which the first is `plan` itself: each trains a copy of the job's model as it is
    now, and is judged by its best score on the rows that watch. Test rows are not looked at.

    The plan goes into the run's config. What was tried stands in the folder, in optuna's journal, from which a search
    that was ended goes on, and in trials.json. None: interrupted. Raises UsageError where no plan could be trained.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    one = replace(plan, minutes=plan.minutes and plan.minutes / (trials + 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what optuna calls experimental
        try:
            storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
            study = optuna.create_study(
                storage=storage, study_name="plait", direction="maximize", load_if_exists=True,
                sampler=optuna.samplers.TPESampler(seed=plan.seed, n_startup_trials=min(8, max(2, trials // 3))),
            )  # fmt: skip
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{folder / JOURNAL} is damaged: {error}. Start a new run") from error
        if not study.get_trials(deepcopy=False):
            study.enqueue_trial({"lr": plan.lr, "weight_decay": plan.weight_decay, "batch_size": plan.batch_size})
        job.model.cpu()
        while (done := len(study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]))) < trials:
            trial = study.ask()
            tried, place = drawn(trial, one, len(job.index)), folder / f"trial_{trial.number}"
            console.start(f"trial {done + 1} of {trials}", tried.epochs * -(-len(job.index) // tried.batch_size))
            mine = job.again(copy.deepcopy(job.model), tried.batch_size)
            try:
                history = train(mine, tried, place, progress=console, device=str(device))
            except UsageError:  # a loss that is not finite: a plan that cannot be
                study.tell(trial, float("-inf"))
                console.say("trial", f"{done + 1} of {trials}: its loss was not finite, {_told(tried)}")
                continue
            finally:
                console.stop()
                shutil.rmtree(place, ignore_errors=True)
            if history.stopped == "interrupted":
                study.tell(trial, state=TrialState.FAIL)
                console.say("stopped", f"interrupted; what was tried is kept. To go on: plait fit --resume {folder}")
                return None
            score = max((row["score"] for row in history.rows), default=float("-inf"))
            study.tell(trial, score)
            console.say("trial", f"{done + 1} of {trials}: {number(score)}, {_told(tried)}")
        best = study.best_trial
        if best.value is None or best.value == float("-inf"):
            raise UsageError("no trial could be trained: their losses were not finite; give a lower --lr")
        found = drawn(optuna.trial.FixedTrial(best.params), plan, len(job.index))
        told = [{"trial": t.number, "score": t.value, **t.params} for t in study.get_trials(deepcopy=False)
                if t.state == TrialState.COMPLETE]  # fmt: skip
    write_json(folder / CONFIG, read_json(folder / CONFIG) | {"plan": asdict(found)})
    write_json(folder / TRIALS, {"best": best.number, "trials": told})
    console.say("trials", f"the best of {trials} scores {number(best.value)} on the rows that watch: {_told(found)}")
    return found


def _told(plan: Plan) -> str:
    return f"lr {plan.lr:.2g}, weight decay {plan.weight_decay:.2g}, {plan.batch_size} rows a batch"
