"""Reading rows of a trace before its layouts are known."""

from __future__ import annotations

from firstdiff.dumps import Site, Trace
from firstdiff.judging.layouts import PLAIN, Alignment, Layout, stated
from firstdiff.judging.readers import merged_last
from firstdiff.model.arithmetic import Array


def rows_of(trace: Trace, site: Site, shape: tuple[int, ...]) -> Array | None:
    """A tensor [token, feature] as stated, or else in whichever order it fits; NaN in rows that are not recorded."""
    layouts = (PLAIN, Layout("", merged_last))
    tried = (stated(trace), *(Alignment({site.point: layout}) for layout in layouts))
    found = (alignment.shaped(trace, site, shape) for alignment in tried)
    return next((x for x in found if x is not None), None)
