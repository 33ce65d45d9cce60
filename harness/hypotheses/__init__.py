"""Hypotheses: named, executable ways of being wrong. What can be planted can be found, with one table."""

from firstdiff.hypotheses.hypothesis import Hypothesis, Scene, Values
from firstdiff.hypotheses.table import TABLE

__all__ = ["TABLE", "Hypothesis", "Scene", "Values"]
