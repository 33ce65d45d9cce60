"""What the difference at a site that nothing explains looks like, the most useful first."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from firstdiff.dumps import Site
from firstdiff.dumps.points import INSIDE, POINTS, Kind, axes_of, carrying, is_inside, kind_of
from firstdiff.explaining.describing.describe import describe
from firstdiff.hypotheses import Scene
from firstdiff.judging.case import Case
from firstdiff.judging.rows import shown
from firstdiff.model.arithmetic import Array
from firstdiff.model.attention import attend


def findings(case: Case, scene: Scene) -> tuple[str, ...]:
    """What the difference at a site looks like, in phrases; other tensors of the candidate are looked through too."""
    found = describe(
        case.recorded,
        case.computed,
        axes=axes_of(case.site.point, case.computed.ndim),
        floor=case.floor,
        seen=case.seen,
        inputs=[x for x in case.call.inputs if isinstance(x, np.ndarray)],
        others=_others(case, scene),
        heads=len(case.call.argument("p")) if case.call.op is attend else 0,
    )
    rows = shown(case.seen)
    only = () if rows is None or len(rows) > 1 else (f"only token {rows[0]} was recorded",)
    return (*(finding.says for finding in found), *only)


def copies(point: str, other: str) -> bool:
    """Whether a point may hold a candidate's wrong tensor once more, so that to equal it says nothing.

    Any point of the same operand of attention may: rope leaves position 0 as it is. A norm never does: where its output
    equals its input, it was left out.
    """
    if point not in POINTS or other not in carrying(*filter(None, [POINTS[point].carries])):
        return False
    return {kind_of(point), kind_of(other)} != {Kind.PRODUCT, Kind.NORM}


def _others(case: Case, scene: Scene) -> Iterator[tuple[str, Array]]:
    """Other recorded tensors: of the layer, of other layers, of other steps."""
    site = case.site
    sites = [
        Site(site.step, site.layer, point)
        for point in INSIDE
        if is_inside(site.point) and point != site.point and not copies(site.point, point)
    ]
    if site.layer is not None:
        layers = sorted(set(range(scene.model.hp.n_layer)) - {site.layer}, key=lambda n: abs(n - (site.layer or 0)))
        sites += [Site(site.step, layer, site.point) for layer in layers]
    sites += [Site(step, site.layer, site.point) for step in range(site.step)]
    for other in sites:
        if (x := scene.lookup(other)) is not None:
            yield f"{other} as the candidate recorded it", x
