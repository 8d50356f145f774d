"""Tasks: what a table's columns ask of a model. Each owns its head, loss, metrics and picture.

A task is a class with `learn(table, schema, rows)` (from the training rows), `encode(table, schema)` (targets, and
cells that are none), `model(bound)`, `finish(outputs)`, `scores`, `guide` (what early stopping looks at), `baseline`,
`columns` (of a table of predictions), `picture` (or None), and plain JSON for its state. How it trains, and what else
it asks of table and system, is `base.Common` where it does not say otherwise. A new one is a file here and a line in
TASKS.
"""

from __future__ import annotations

from plait.tasks.caption import Caption
from plait.tasks.classify import Classify, ClassifyMany
from plait.tasks.match import Match
from plait.tasks.regress import Regress
from plait.tasks.retrieve import Retrieve
from plait.tasks.transcribe import Transcribe

TASKS = {t.name: t for t in (Classify, ClassifyMany, Regress, Retrieve, Match, Transcribe, Caption)}
CHOICES = ("classify", "regress", "retrieve", "match", "transcribe", "caption")
Task = Classify | ClassifyMany | Regress | Retrieve | Match | Transcribe | Caption
