"""Measuring a case that no hypothesis explains: the simplest statement that gives the candidate's numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from firstdiff.explaining.attempt import ALIKE, Attempt, Fault, Means, at_part, attempt
from firstdiff.explaining.measured.activations import other_activations
from firstdiff.explaining.measured.alteration import RESULT
from firstdiff.explaining.measured.curves import curves
from firstdiff.explaining.measured.experts import expert_shares
from firstdiff.explaining.measured.frequencies import other_frequencies
from firstdiff.explaining.measured.heads import other_heads
from firstdiff.explaining.measured.kept_sums import kept_sums
from firstdiff.explaining.measured.leftover import ROUNDED, is_rounding
from firstdiff.explaining.measured.masks import other_masks
from firstdiff.explaining.measured.matrices import other_rows
from firstdiff.explaining.measured.norms import mean_of_some
from firstdiff.explaining.measured.operands import views
from firstdiff.explaining.measured.orders import other_orders
from firstdiff.explaining.measured.other_way import WITHIN, turned
from firstdiff.explaining.measured.pattern import Pattern
from firstdiff.explaining.measured.places import changed_places
from firstdiff.explaining.measured.rotations import other_positions
from firstdiff.explaining.measured.roundings import rounded_operands
from firstdiff.explaining.measured.row_scales import as_layer_norm, other_vectors, scaled_rows
from firstdiff.explaining.measured.series import evidence
from firstdiff.explaining.measured.softmaxes import scores_sloped, softmax_fed, without_sum
from firstdiff.explaining.measured.statement import Found, statement
from firstdiff.explaining.measured.statements import MEASURED
from firstdiff.explaining.measured.sums import counted_terms
from firstdiff.explaining.measured.tensors import other_operands
from firstdiff.explaining.measured.token_rows import other_token_rows
from firstdiff.explaining.measured.view import View, view_of
from firstdiff.explaining.residual import Part, computed, part_of
from firstdiff.hypotheses.hypothesis import Values, with_op
from firstdiff.hypotheses.products import cut, spread
from firstdiff.judging.case import Case
from firstdiff.model.arithmetic import Arithmetic, Array
from firstdiff.model.operations import Derived, linear
from firstdiff.model.probe import Call
from firstdiff.verdict import Measured

CLEARLY, FAR = 8.0, 500.0
"""What is measured must leave less of the error than one over these: it has more freedom than a hypothesis. The first
is enough for what leaves as much as there is where the candidate is right."""

AS_RIGHT = 5.0
"""How many times the error of right sites that is."""

NEAR = 2.0
"""What does not explain is told as the nearest where it leaves less of the error than one over this."""

WIDE = ("measured-turns", "measured-order", "measured-heads", "measured-rows", "measured-curve")
"""Statements with many unknowns."""

TRIED = 16
"""Statements that are tried, those that leave least by what was measured."""

LOOK = 128, 16
"""Outputs and tokens of a product that roundings are tried at first."""


def _named(case: Case, means: Means, values: Values) -> dict[str, str]:
    """Which recorded tensor an operand is, by its numbers."""
    own = case.call.argument(values["of"]) if "of" in values and values["of"] != RESULT else None
    if not isinstance(own, np.ndarray):
        return {}
    for layers in (0, -1):
        for point in means.scene.before(case.call, layers=layers):
            x = means.scene.beside(case.call, point, layers=layers)
            if x is not None and x.size == own.size and np.array_equal(x.reshape(own.shape), own, equal_nan=True):
                return {"named": point + (" of the layer before" if layers else "")}
    return {}


ANY_OF = statement("measuring", "what was measured", lambda call, _scene, _values: call, "what was measured")
"""Stands for all of it where something cannot be measured."""


def is_wide(tried: Attempt) -> bool:
    """Whether a statement has so many unknowns that two known faults say more."""
    return tried.fault.id in WIDE


def measured(case: Case, means: Means) -> list[Attempt]:
    """The statement that explains a case, or else the one that leaves least of the error, if it leaves less than half.

    Where several calls may be wrong, only what the last one gives is measured.
    """
    if not (means.measuring and np.isfinite(case.error)):
        return []
    with means.failures.at(case.site, ANY_OF), np.errstate(all="ignore"):
        return _measured(case, means)
    return []


def _measured(case: Case, means: Means) -> list[Attempt]:
    view = view_of(case, means.scene)
    if view is None:
        return []
    measuring = _Measuring(case, means, view)
    best = measuring.best()
    if best is not None:
        ((of, values),) = best.fault.parts
        values = {**values, **_named(case, means, values)}
        told = evidence(view, of.id, values)
        return [replace(best, fault=replace(best.fault, parts=((of, values),), measured=told))]
    near = [a for a in measuring.tried if not a.explains and NEAR * a.residual <= case.error]
    return [min(near, key=lambda a: a.residual)] if near else []


def nothing_but_bias(case: Case, means: Means) -> list[Attempt]:
    """The statement that a product counts none of its inputs, if its bias alone gives the candidate's numbers.

    Each of many faults leaves nothing of a product, and its numbers do not tell them apart.
    """
    if not means.measuring or case.segment or case.call.op is not linear or case.call.argument("bias") is None:
        return []
    everything = str(Pattern.span(0, case.call.argument("weight").shape[-1]))
    values = {"of": "x", "input": everything, "by": 0.0, "all": True}
    found = _tried(case, means, Found("measured-terms", values, 0.0))
    if found is None or not found.explains:
        return []
    numbers = Measured(int(np.isfinite(case.recorded).sum()), 0)
    return [replace(found, fault=replace(found.fault, measured=numbers))]


@dataclass(frozen=True, slots=True, eq=False)
class _Measuring:
    """One case, its view, and the statements that were tried."""

    case: Case
    means: Means
    view: View
    tried: list[Attempt] = field(default_factory=list)

    def best(self) -> Attempt | None:
        """The statement that explains the case; what takes longer to try comes later."""
        if not self.case.direct:
            return self._best(_worth([*expert_shares(self.view), *changed_places([self.view])]))
        found = self._best(_worth(_all(self.view)))
        found = found or self._best(self._roundings())
        return found or self._best(other_operands(self.view), part_of(self.case, *LOOK))

    def _best(self, statements: Iterable[Found], part: Part | None = None) -> Attempt | None:
        """The statement that explains best, the first of those that explain as well."""
        case, good = self.case, list[tuple[int, Attempt]]()
        allowed = max(AS_RIGHT * case.noise, case.stored / 2, ROUNDED)
        for order, of in enumerate(statements):
            tried = _tried(case, self.means, of, part)
            if tried is not None and of.id in WITHIN:
                tried = turned(case, self.means, tried, self.view)
            if tried is None:
                continue
            self.tried.append(tried)
            if self._is_one_number(of):
                continue
            clear = of.id in WITHIN or tried.residual <= max(case.error / FAR, min(case.error / CLEARLY, allowed))
            if tried.explains and clear:
                good.append((order, tried))
        while good:
            level = max(ALIKE * min(a.residual for _, a in good), case.noise)
            best = min(good, key=lambda of: (of[1].residual > level, of[1].fault.fitted, of[0]))
            if self._leaves_rounding(best[1]):
                return best[1]
            good.remove(best)
        return None

    def _leaves_rounding(self, tried: Attempt) -> bool:
        scene = self.means.scene
        changed = tried.fault.change(len(self.case.segment), self.case.call, scene)
        if changed is None:
            return False
        given, other_way = computed(changed, scene.arithmetic), tried.fault.id in WITHIN
        return is_rounding(self.view, given, tried.residual, turned=other_way)

    def _is_one_number(self, of: Found) -> bool:
        """Whether a statement says of a single token only how large its row is: many faults do that."""
        if of.id not in ("measured-scaled", "measured-raised") or len(self.view.rows) > 1:
            return False
        return not {"feature", "key", "head"} & of.values.keys()

    def _roundings(self) -> Iterator[Found]:
        """The roundings that leave least; of a large product those that do so at some outputs and tokens."""
        case, scene, view = self.case, self.means.scene, self.view
        found = [*rounded_operands(view), *kept_sums(view)]
        if case.call.op is not linear or not found:
            yield from found
            return
        tokens, rows = view.rows[spread(len(view.rows), LOOK[1])], spread(view.result.shape[1], LOOK[0])
        whole = case.call.with_arguments(weight=case.call.argument("weight").measured())
        part = cut(whole, rows, tokens)
        recorded = case.recorded.reshape(len(case.recorded), -1)[tokens][:, rows]
        size = np.square(recorded).sum(1)
        own = np.square(recorded - computed(part, scene.arithmetic)).sum(1)
        error = float((own / np.where(size > 0, size, 1)).sum())
        left: list[tuple[float, Found]] = []
        for of in found:
            self.means.budget.check()
            changed = MEASURED[of.id].change(part, scene, of.values)
            if changed is not None:
                off = recorded - computed(changed, scene.arithmetic)
                kept = float((np.square(off).sum(1) / np.where(size > 0, size, 1)).sum())
                if NEAR**2 * kept <= error:
                    left.append((kept, of))
        yield from (of for _, of in sorted(left, key=lambda of: of[0])[:3])


def _all(view: View) -> Iterator[Found]:
    yield from expert_shares(view)
    yield from other_token_rows(view)
    yield from other_positions(view)
    yield from other_frequencies(view)
    yield from other_activations(view)
    yield from other_vectors(view)
    yield from without_sum(view)
    yield from as_layer_norm(view)
    yield from scaled_rows(view)
    yield from other_heads(view)
    yield from other_orders(view)
    yield from other_rows(view)
    yield from other_masks(view)
    yield from softmax_fed(view)
    yield from scores_sloped(view)
    yield from counted_terms(view)
    yield from changed_places(list(views(view)))
    yield from mean_of_some(view)
    yield from curves(view)


def _worth(statements: Iterable[Found]) -> list[Found]:
    """The statements that leave least, in the order in which they were measured."""
    once = {f"{of.id}{of.values}": (number, of) for number, of in reversed(list(enumerate(statements)))}
    kept = sorted(once.values(), key=lambda of: of[1].left)[:TRIED]
    return [of for _, of in sorted(kept, key=lambda of: of[0])]


def _tried(case: Case, means: Means, of: Found, part: Part | None = None) -> Attempt | None:
    meant, number = MEASURED[of.id], len(case.segment)
    fault = Fault(((meant, of.values),), on=number or None)
    with means.failures.at(case.site, meant):
        if of.values.get("of") != RESULT:
            return attempt(case, means.scene, fault, part=part, budget=means.budget)
        changed = fault.change(number, _known(case), means.scene)
        return None if changed is None else at_part(case, means.scene, fault, changed, None)
    return None


def _known(case: Case) -> Call:
    """The judged call with its result at hand, for what is changed of that alone."""

    def known(*_: object, arithmetic: Arithmetic, **__: object) -> Array:
        return np.array(arithmetic.widen(case.computed))

    return with_op(case.call, Derived(case.call.op, known, sizes=lambda size: size))
