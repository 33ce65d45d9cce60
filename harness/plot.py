"""Plots for an investigation, as matplotlib figures that are usable alone. Reached as ``firstdiff.plot``.

Needs matplotlib (``pip install 'firstdiff[notebook]'``). What is plotted is measured here, and drawn in
:mod:`firstdiff.reports.plots` and :mod:`firstdiff.reports.rope_plots`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from firstdiff.api import AnySite, File, as_trace, opened_model
from firstdiff.blas import one_thread
from firstdiff.dumps import Site, Trace
from firstdiff.dumps.points import Kind, kind_of
from firstdiff.dumps.site import as_site
from firstdiff.engines.identity import engine_name
from firstdiff.errors import UsageError
from firstdiff.model.rope_fit import frequencies_of
from firstdiff.rope.fit import fitted_angles
from firstdiff.rope.table import rope_table
from firstdiff.rope.turns import rotation_of
from firstdiff.runs.pair import Pair, free, local
from firstdiff.runs.replaying import understood
from firstdiff.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "attention",
    "depth",
    "heads",
    "heatmap",
    "histogram",
    "logits",
    "positions",
    "rope_angles",
    "rope_similarity",
    "scatter",
]


def heatmap(verdict: Verdict, *, step: int = 0) -> Figure:
    """Layers × points, coloured by local error, with the mark of each status that is not ``agrees``.

    Examples
    --------
    >>> import firstdiff as fd
    >>> trace = fd.record(model, tokens=[1, 70, 71], engine="reference:f32", bugs=["rope-base@2"])
    >>> figure = fd.plot.heatmap(fd.compare(trace, model))
    >>> figure.axes[0].get_title()
    'Local error of every site of step 0'
    """
    from firstdiff.reports import plots

    _check_step(step, len(verdict.tokens))
    return plots.heatmap(verdict, step)


def depth(verdict: Verdict, *, step: int = 0) -> Figure:
    """Worst local error of each layer, the floor, and the drift of the residual stream, over depth."""
    from firstdiff.reports import plots

    _check_step(step, len(verdict.tokens))
    return plots.depth(verdict, step)


def positions(
    trace: Trace | File, site: AnySite, model: File | None = None, *, against: Trace | File | None = None
) -> Figure:
    """Error of a site by position.

    Parameters
    ----------
    trace
        Whose site it is.
    site
        Which: ``"Kcur_rope-3"`` or ``("Kcur_rope", 3)``.
    model
        The GGUF file: the error is then local, on the trace's own inputs.
    against
        Another trace, in place of the model: the difference of two free runs.

    Examples
    --------
    >>> import firstdiff as fd
    >>> trace = fd.record(model, tokens=[1, 70, 71], engine="reference:f32", bugs=["rope-base@2"])
    >>> figure = fd.plot.positions(trace, ("Kcur_rope", 2), model)
    >>> figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()
    ('position', 'relative error')
    """
    from firstdiff.reports import plots

    opened, pair = _pair(trace, site, model, against)
    errors = pair.errors(pair.token_axis)
    return plots.errors(
        errors,
        at=_positions(opened, pair)[-len(errors) :],
        axis="position",
        title=f"{pair.site} by position",
        of=pair.of,
        floor=pair.floor,
    )


def heads(
    trace: Trace | File, site: AnySite, model: File | None = None, *, against: Trace | File | None = None
) -> Figure:
    """Error of a site by head; parameters as of :func:`positions`."""
    from firstdiff.reports import plots

    _, pair = _pair(trace, site, model, against)
    if "head" not in pair.axes:
        raise UsageError(f"{pair.site}: has no heads, its axes are {', '.join(pair.axes)}")
    errors = pair.errors(pair.axes.index("head"))
    return plots.errors(
        errors, at=range(len(errors)), axis="head", title=f"{pair.site} by head", of=pair.of, floor=pair.floor
    )


def histogram(
    trace: Trace | File, site: AnySite, model: File | None = None, *, against: Trace | File | None = None
) -> Figure:
    """Distribution of a site's values and of the other's; parameters as of :func:`positions`."""
    from firstdiff.reports import plots

    _, pair = _pair(trace, site, model, against)
    return plots.histogram(*pair.counted(), title=f"Values of {pair.site}", called=pair.called, of=pair.of)


def scatter(
    trace: Trace | File, site: AnySite, model: File | None = None, *, against: Trace | File | None = None
) -> Figure:
    """A site's values over the other's; parameters as of :func:`positions`."""
    from firstdiff.reports import plots

    _, pair = _pair(trace, site, model, against)
    return plots.scatter(*pair.counted(), title=f"Values of {pair.site}", called=pair.called, of=pair.of)


def logits(trace: Trace | File, against: Trace | File, *, step: int = 0, top: int = 8) -> Figure:
    """The largest logits of the last token of a step, in both traces.

    Parameters
    ----------
    trace, against
        Two traces of the same tokens.
    step
        Of which step.
    top
        How many tokens of each.
    """
    from firstdiff.reports import plots

    ours, theirs = as_trace(trace), as_trace(against)
    _check_step(step, min(len(ours.steps), len(theirs.steps)))
    site = Site(step, None, "result_output")
    for each in (ours, theirs):
        if site not in each:
            raise UsageError(f"{site}: {engine_name(each)} did not record it")
    c, r = (x.reshape(-1, x.shape[-1])[-1].astype(np.float64) for x in (ours[site], theirs[site]))
    if c.shape != r.shape:
        raise UsageError(f"{site}: {len(c):,} logits in one trace and {len(r):,} in the other")
    chosen = sorted({*np.argsort(-r)[:top].tolist(), *np.argsort(-c)[:top].tolist()}, key=lambda i: -float(r[i]))
    return plots.logits(chosen, c[chosen], r[chosen], step=step, called=engine_name(ours), of=engine_name(theirs))


def rope_angles(
    model: File, *, positions: Sequence[int] = range(64), trace: Trace | File | None = None, layer: int = 0
) -> Figure:
    """Inverse frequencies and angles of every pair as the file asks for them; beside a trace's, fitted.

    Parameters
    ----------
    model
        The GGUF file.
    positions
        At which; a trace has its own.
    trace, layer
        A candidate whose queries were recorded before and after the rotation at the layer.
    """
    from firstdiff.reports import rope_plots

    opened = opened_model(model)
    if trace is None:
        table = rope_table(opened, positions)
        return rope_plots.angles(table.frequencies, table.theta, table.positions, base=table.base)
    point, before = next(iter(rotation_of(opened).of.items()))
    with one_thread():
        candidate = as_trace(trace)
        _, alignment = understood(opened, candidate)
        fit = fitted_angles(opened, candidate, layer, point, alignment=alignment)
    if fit is None:
        raise UsageError(
            f"{before}-{layer} and {point}-{layer} are not both recorded: record them before and after the rotation"
        )
    table = rope_table(opened, fit.positions)
    fitted, _ = frequencies_of(np.exp(1j * fit.theta), np.asarray(fit.positions))
    return rope_plots.fitted(
        table.frequencies, fitted, fit.expected, fit.theta, fit.positions, layer=layer, says=fit.finding.says
    )


def rope_similarity(model: File, *, positions: Sequence[int] = range(128)) -> Figure:
    """How alike two positions are to rope: the mean cosine of all pairs' angle differences."""
    from firstdiff.reports import rope_plots

    table = rope_table(opened_model(model), positions)
    difference = table.theta[:, None] - table.theta[None]  # [T, T, head_dim / 2]
    return rope_plots.similarity(np.cos(difference).mean(-1), table.positions, base=table.base)


def attention(trace: Trace | File, layer: int, head: int = 0, *, step: int = 0, pieces: Sequence[str] = ()) -> Figure:
    """Attention weights of one head: a row a query, a column a key.

    Parameters
    ----------
    trace
        Which holds ``kq_soft_max`` of the layer.
    layer, head, step
        Where.
    pieces
        Texts of the tokens, such as a verdict's ``pieces``.
    """
    from firstdiff.reports import plots

    opened = as_trace(trace)
    site = Site(step, layer, "kq_soft_max")
    if site not in opened:
        raise UsageError(f"{site}: {engine_name(opened)} did not record it")
    recorded = opened["kq_soft_max", layer, step]
    wanted = ("head", "query", "key")
    if sorted(recorded.axes) != sorted(wanted):
        raise UsageError(f"{site}: recorded shape {list(recorded.shape)} is not [head, query, key]")
    weights = np.asarray(recorded).transpose([recorded.axis(axis) for axis in wanted])
    if not 0 <= head < len(weights):
        raise UsageError(f"head {head}: {site} has heads 0 to {len(weights) - 1}")
    first = sum(len(s.tokens) for s in opened.steps[:step])
    return plots.attention(weights[head], title=f"Attention of {site}, head {head}", first=first, pieces=tuple(pieces))


def _pair(trace: Trace | File, site: AnySite, model: File | None, against: Trace | File | None) -> tuple[Trace, Pair]:
    opened, where = as_trace(trace), as_site(site)
    if (model is None) == (against is None):
        raise UsageError("give the model, for the local error, or against=, for the difference to another trace")
    if against is not None:
        return opened, free(opened, as_trace(against), where)
    assert model is not None
    with one_thread():
        return opened, local(opened_model(model), opened, where)


def _positions(trace: Trace, pair: Pair) -> list[int]:
    """The position of each token of a site; of a cache, those of all steps so far."""
    cached = kind_of(pair.site.point) is Kind.CACHE
    steps = trace.steps[0 if cached else pair.site.step : pair.site.step + 1]
    return [p for step in steps for p in step.positions]


def _check_step(step: int, steps: int) -> None:
    if not 0 <= step < steps:
        raise UsageError(f"step {step}: there are steps 0 to {steps - 1}")
