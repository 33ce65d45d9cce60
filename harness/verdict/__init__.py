"""What is said: the frozen records of a verdict, writing and reading them."""

from firstdiff.verdict.dump import DumpFinding
from firstdiff.verdict.explanations import CounterCheck, Explanation, Failed, Measured, Series, Tried
from firstdiff.verdict.sensitivity import Fault, Sensitivity, Smallest
from firstdiff.verdict.sites import Detail, Element, Histogram, Profile, SiteVerdict, Statistics, Status
from firstdiff.verdict.verdict import PASSED, Logits, Verdict, Witness, broken

__all__ = [
    "PASSED",
    "CounterCheck",
    "Detail",
    "DumpFinding",
    "Element",
    "Explanation",
    "Failed",
    "Fault",
    "Histogram",
    "Logits",
    "Measured",
    "Profile",
    "Sensitivity",
    "Series",
    "SiteVerdict",
    "Smallest",
    "Statistics",
    "Status",
    "Tried",
    "Verdict",
    "Witness",
    "broken",
]
