"""Traces: what an engine recorded in one run, read from disk, written to disk, or held in memory."""

from firstdiff.dumps.errors import TraceError
from firstdiff.dumps.opening import names_in, open_trace
from firstdiff.dumps.site import Site, Step
from firstdiff.dumps.trace import Trace
from firstdiff.dumps.understood import NameRow, Unknown, explain_names, suggested_table
from firstdiff.dumps.writing import TraceWriter

__all__ = [
    "NameRow",
    "Site",
    "Step",
    "Trace",
    "TraceError",
    "TraceWriter",
    "Unknown",
    "explain_names",
    "names_in",
    "open_trace",
    "suggested_table",
]
