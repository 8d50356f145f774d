"""The ladder beneath a network: what a careful person would try first."""

from plait.tasks.beneath.ladder import Ladder

__all__ = ["Ladder"]
