"""Reading rows of a trace before its layouts are known."""

from __future__ import annotations

from firstdiff.dumps import Site, Trace
from firstdiff.judging.layouts import PLAIN, Alignment, Layout, stated
from firstdiff.judging.readers import merged_last
from firstdiff.model.arithmetic import Array
from firstdiff.model.outline import Awaited


def rows_of(trace: Trace, site: Site, shape: tuple[int, ...]) -> Array | None:
    """A tensor [token, feature] as stated, or else in whichever order it fits; NaN in rows that are not recorded."""
    layouts = (PLAIN, Layout("", merged_last))
    tried = (stated(trace), *(Alignment({site.point: layout}) for layout in layouts))
    found = (alignment.shaped(trace, site, shape) for alignment in tried)
    return next((x for x in found if x is not None), None)


def recorded_rows(trace: Trace, value: Awaited) -> Array | None:
    """A value [token, feature] as it is recorded; None for any other."""
    call = value.call
    if not call.point or len(value.shape) != 2:  # noqa: PLR2004 - [token, feature]
        return None
    return rows_of(trace, Site(call.step, call.layer, call.point), value.shape)
