"""Traces: what an engine recorded in one run, read from disk, written to disk, or held in memory."""

from firstdiff.dumps.errors import TraceError
from firstdiff.dumps.opening import open_trace
from firstdiff.dumps.site import Site, Step
from firstdiff.dumps.trace import Trace
from firstdiff.dumps.writing import TraceWriter

__all__ = ["Site", "Step", "Trace", "TraceError", "TraceWriter", "open_trace"]
