"""The ladder beneath a network: what a careful person would try first."""

from plait.tasks.beneath.ladder import Ladder
from plait.tasks.beneath.several import Several

__all__ = ["Ladder", "Several"]
