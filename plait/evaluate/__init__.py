"""Evaluation: metrics with intervals, pictures, and the report of a run."""
