"""A verdict as a table to compute with: a row a site."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from firstdiff.reports.words import along
from firstdiff.verdict import SiteVerdict, Status, Verdict

if TYPE_CHECKING:
    from pandas import DataFrame

MISSING = "verdict.frame() needs pandas: pip install 'firstdiff[notebook]'"


def frame(verdict: Verdict) -> DataFrame:
    """Every site of a verdict as a row of a pandas DataFrame, in execution order.

    Parameters
    ----------
    verdict
        The verdict.

    Returns
    -------
    Columns ``site``, ``point``, ``layer`` (missing outside the layers), ``step``, ``op``, ``status`` (a category),
    ``local_error``, ``floor``, ``drift`` (NaN where there is none), ``not_finite``, ``inputs_right``, ``where``,
    ``worst_index``, ``worst_candidate``, ``worst_reference``, ``segment`` (the sites judged together with it),
    ``reason`` and ``hypothesis`` (None where there is none).

    Raises
    ------
    ImportError
        Where pandas is not installed.
    """
    try:
        import pandas as pd
    except ModuleNotFoundError:
        raise ImportError(MISSING) from None

    why = {site: e.hypothesis for e in verdict.explanations for site in e.sites}
    rows = [_row(s) | {"hypothesis": why.get(s.site)} for s in verdict.sites]
    table = pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)
    return table.astype(COLUMNS | {"status": pd.CategoricalDtype([s.value for s in Status])})


COLUMNS = {
    "site": object, "point": object, "layer": "Int64", "step": "int64", "op": object, "status": object,
    "local_error": "float64", "floor": "float64", "drift": "float64", "not_finite": "int64", "inputs_right": "bool",
    "where": object, "worst_index": object, "worst_candidate": "float64", "worst_reference": "float64",
    "segment": object, "reason": object, "hypothesis": object,
}  # fmt: skip


def _row(s: SiteVerdict) -> dict[str, Any]:
    worst = s.worst
    return {
        "site": str(s.site),
        "point": s.point,
        "layer": s.layer,
        "step": s.step,
        "op": s.op,
        "status": s.status.value,
        "local_error": s.local_error,
        "floor": s.floor,
        "drift": s.drift,
        "not_finite": s.not_finite,
        "inputs_right": s.inputs_right,
        "where": None if s.where is None else ", ".join(along(axis, span) for axis, span in s.where.items()),
        "worst_index": None if worst is None else worst.index,
        "worst_candidate": None if worst is None else worst.candidate,
        "worst_reference": None if worst is None else worst.reference,
        "segment": tuple(map(str, s.segment)),
        "reason": s.reason,
    }
