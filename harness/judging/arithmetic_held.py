"""Which dtypes of weights are tried at a site: what an engine holds them in is found from its products and norms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from firstdiff.judging.arithmetic_attempts import Trial
from firstdiff.judging.arithmetic_evidence import CEILINGS, FAR
from firstdiff.judging.arithmetic_options import BASES, held_option
from firstdiff.model.arithmetic import STORED, Arithmetic
from firstdiff.model.holding import ELEMENTS, KINDS, holding, twin, variants

IN_VAIN = 3
"""Sites of a point at which every kind is tried in vain before only those are tried that fit elsewhere: what is wrong
there is no dtype of the weights. Sites that are off by more than an arithmetic makes count by themselves."""

NEAREST = 3
"""Kinds that are tried in all their variants, and under every arithmetic of products: those that leave least."""

LESS = 0.75
"""The right kind leaves less than this part of the error, even where its codes or the products are another variant's.
int8 in groups of 32, the least of the kinds with codes, changes products by 5e-3, bf16 operands by 3e-3: half is
left."""

NARROWLY = 1 / 3
"""The part of the floor of a narrow dump below which nothing but storing shows: a product of stored inputs, stored
itself, is a quarter of it off."""

ELEVEN_BITS = "f16-operands", ("tf32", "f16")
"""Two ways to round to eleven bits. They part where a number is too small for f16, which is seldom: once one of them
fits, so may the other."""

Attempt = Callable[[str, Arithmetic], None]


@dataclass
class HeldSearch:
    """Tries what weights may be held in, where the file's own numbers do not fit, and what has fitted elsewhere.

    Parameters
    ----------
    fitted
        The kinds that were at their floor at some site, in the order in which they were found, with the names of the
        arithmetics of products.
    """

    fitted: dict[str, tuple[str, ...]] = field(default_factory=dict)
    vain: Counter[tuple[str, bool]] = field(default_factory=Counter)

    def run(self, group: str, length: int, attempt: Attempt, trial: Trial, *, narrow: bool) -> None:
        """Try kinds at one site, until one fits.

        Parameters
        ----------
        group
            The group of the site.
        length
            How many numbers a row of the weight has.
        attempt
            Tries an option; what it leaves is then in `trial`.
        narrow
            Whether tensors were stored in fewer digits than they were computed in. Floors are wide then.
        """
        errors = trial.errors

        def fit() -> list[str]:
            return _fitting(trial, narrow=narrow)

        def all_of(names: Iterable[tuple[str, str]]) -> None:
            for base, kind in names:
                option = held_option(base, kind)
                if option.name not in errors and holding(kind).divides(length):
                    attempt(option.name, option)

        codes = group != "norm"
        known = [(base, kind) for kind, bases in self.fitted.items() for base in bases if codes or kind in ELEMENTS]
        always = () if group == "linear" else ELEMENTS  # a product takes longer
        all_of([*known, *(("f32", kind) for kind in always)])
        if ELEVEN_BITS[0] in fit():
            all_of([ELEVEN_BITS[1]])
            self._try_elsewhere(*ELEVEN_BITS[1])
        if fit():
            return
        rounds = min(errors.values()) <= CEILINGS.get(group, 0.0)  # as an arithmetic does, and not as a fault
        if self.vain[trial.part, rounds] < IN_VAIN:
            if not self._search(all_of, fit, trial, codes=codes):
                self.vain[trial.part, rounds] += 1
        elif codes and rounds:
            all_of((base, kind) for kind in self.fitted for base in BASES)

    def _search(
        self,
        all_of: Callable[[Iterable[tuple[str, str]]], None],
        fit: Callable[[], list[str]],
        trial: Trial,
        *,
        codes: bool,
    ) -> bool:
        """Try every kind, then the nearest in all their variants and under every arithmetic of products.

        Returns whether something fits.
        """
        errors = trial.errors
        kinds = KINDS if codes else ELEMENTS
        all_of(("f32", kind) for kind in kinds)
        nearest = sorted((k for k in kinds if f"f32+held={k}" in errors), key=lambda k: errors[f"f32+held={k}"])
        least = min((errors[f"f32+held={kind}"] for kind in nearest), default=np.inf)
        if least > LESS * errors["f32"]:  # operands may be rounded by far more
            nearest, base = [], min((b for b in BASES if b in errors), key=lambda b: errors[b], default="f32")
            all_of((base, kind) for kind in (kinds if errors[base] <= LESS * errors["f32"] else ()))
        for stage in (
            [("f32", way) for kind in nearest[:NEAREST] for way in variants(kind)],
            [(base, kind) for kind in nearest[:NEAREST] for base in BASES],
            [(base, way) for kind in nearest[:1] for way in variants(kind) for base in BASES],
        ):
            if codes and not fit():
                all_of(stage)
        if not codes and not fit():  # vectors held in one narrow type, results kept in another
            all_of((base, kind) for base in STORED if base in errors for kind in ELEMENTS if kind != base)
        found = _found(trial, fit())
        all_of((base, other) for base, kind in found if (other := twin(kind)) is not None)
        for base, kind in found:
            for each in (kind, twin(kind)):
                if each is not None:
                    self._try_elsewhere(base, each)
        return bool(found)

    def _try_elsewhere(self, base: str, kind: str) -> None:
        self.fitted[kind] = tuple(dict.fromkeys((*self.fitted.get(kind, ()), base)))


def _fitting(trial: Trial, *, narrow: bool) -> list[str]:
    """The options at their floor; where floors are wide for how tensors or results were stored, those far below it.

    Operands that are rounded twice have the widest floor, which hides a kind.
    """
    if narrow:
        most = trial.floors["f32"]
        return [name for name, e in trial.errors.items() if e <= min(NARROWLY * trial.floors[name], most)]
    wide = {name for name in trial.errors if name.partition("+")[0] in STORED}
    return [n for n in trial.fitting if n not in wide or trial.errors[n] <= FAR * trial.floors[n]]


def _found(trial: Trial, fitting: Sequence[str]) -> list[tuple[str, str]]:
    """The kinds of those that fit, with the arithmetic of products; or that of the best, where it clearly is."""
    best = min(trial.errors, key=lambda name: trial.errors[name])
    clear = trial.errors[best] <= min(trial.floors[best], LESS * trial.errors["f32"])
    names = fitting or ([best] if clear else [])
    return [(base, kind) for base, by, kind in (name.partition("+held=") for name in names) if by]
