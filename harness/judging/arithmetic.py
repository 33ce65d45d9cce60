"""A candidate's arithmetic, group by group, with the evidence for it and the floors that follow."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np

from firstdiff.dumps import Trace
from firstdiff.judging.arithmetic_options import GROUPS
from firstdiff.judging.levels import Levels, Segment
from firstdiff.model.arithmetic import HELD, Arithmetic, arithmetic_named
from firstdiff.model.engine import Model
from firstdiff.model.errors import ModelError
from firstdiff.model.holding import holding
from firstdiff.model.rounding import BLOCK, QUANTISED
from firstdiff.verdict import SiteVerdict, Status

STRONG, HANDFUL = 3.0, 5
"""Evidence is weak where the runner-up is nearer than this factor, or there are fewer sites."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of one group's arithmetic.

    Parameters
    ----------
    name
        The option that leaves the least.
    error
        Its median error over sites.
    runner_up
        The next one that says something else.
    strength
        How many times larger the runner-up's errors are at the point that speaks most against it; infinite for none.
    sites
        How many sites were measured.
    fits
        Whether its error is at its floor.
    same
        Other options that leave just as much: they are the same arithmetic on these numbers.
    level
        Whether the group is judged at its own level, because no option is at its floor; `ceiling` is then the most.
    like
        An arithmetic that makes errors of that size, though not these.
    known
        Whether a good many sites are at its floor and at no other's, though not most: the others are faults.
    """

    name: str
    error: float
    runner_up: str | None
    strength: float
    sites: int
    fits: bool
    same: tuple[str, ...] = ()
    level: bool = False
    ceiling: float = 0.0
    like: str | None = None
    known: bool = False

    @property
    def base(self) -> str:
        """The option without what weights are held in."""
        return self.name.partition("+held=")[0]

    @property
    def held(self) -> str | None:
        """What weights are held in, where the option says so."""
        return self.name.partition("+held=")[2] or None

    @property
    def weak(self) -> bool:
        """Whether another arithmetic could have done it."""
        return (
            self.strength < STRONG or self.sites < HANDFUL or (self.runner_up is None and not (self.fits or self.known))
        )

    def called(self, name: str) -> Evidence:
        """The same evidence, for another option that leaves just as much."""
        return replace(self, name=name, same=(self.name, *(n for n in self.same if n != name)))

    def __str__(self) -> str:
        if self.level:
            known = "unknown" if self.weak else f"near to {self.base}"
            if self.weak and self.like is not None:
                known = f"unknown, perhaps {self.like}, weak evidence"
            return f"{known} (level {self.error:.1e}, ceiling {self.ceiling:.0e})"
        return f"{self.base} (weak evidence)" if self.weak else self.base


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The arithmetic that a candidate is judged in, the evidence for it, and the levels of what is unknown.

    Where it differs by the number of tokens of a step, `phases` has what was found for some numbers, and the rest is
    that of the first step. `instead` is the arithmetic that the trace states, where its numbers say otherwise.
    """

    arithmetic: Arithmetic
    groups: dict[str, Evidence] = field(default_factory=dict)
    levels: Levels = field(default_factory=Levels)
    instead: str | None = None
    phases: tuple[tuple[int, Fingerprint], ...] = ()

    def of(self, tokens: int) -> Fingerprint:
        """What was found for steps of so many tokens, or of the number nearest to it."""
        found = min(self.phases, key=lambda of: max(of[0], tokens) / min(of[0], tokens), default=None)
        return self if found is None else found[1]

    def with_segments(self, segments: dict[Segment, float]) -> Fingerprint:
        """The same with levels of whole segments."""

        def levelled(found: Fingerprint) -> Fingerprint:
            return replace(found, levels=replace(found.levels, segments=segments))

        return replace(levelled(self), phases=tuple((tokens, levelled(found)) for tokens, found in self.phases))

    @property
    def tight(self) -> Fingerprint:
        """The same without levels: what is unknown is judged as if it were known."""
        phases = tuple((tokens, replace(found, levels=Levels())) for tokens, found in self.phases)
        return replace(self, levels=Levels(), phases=phases)

    @property
    def levelled(self) -> bool:
        """Whether anything is judged at a level of its own."""
        return bool(self.levels) or any(found.levels for _, found in self.phases)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a verdict notes."""
        if self.instead is None:
            return ()
        said = f"the trace states the arithmetic {self.instead}, but its numbers are those of "
        names: dict[str, list[int]] = {}
        for tokens, found in self.phases:
            names.setdefault(found.arithmetic.name, []).append(tokens)
        return (said + (_by_tokens(names) if len(names) > 1 else self.arithmetic.name),)

    @property
    def knows_products(self) -> bool:
        """Whether products speak for the arithmetic, or what their weights are held in does."""
        linear = self.groups.get("linear")
        return self.instead is not None if linear is None else linear.fits or linear.known

    @property
    def better(self) -> bool:
        """Whether it may stand against an arithmetic that a trace states: no fault's, and known by strong evidence."""
        of = [e for group, e in self.groups.items() if group not in ("results", "embedding")]
        return all(e.fits or e.level for e in of) and any(e.fits and not e.weak for e in of)

    def holding(self, stated: Arithmetic) -> Fingerprint | None:
        """The arithmetic that a trace states, with the weights held as they were found to be; None as in the file.

        What weights are held in is known by itself: an operation that is wrong everywhere says nothing against it. Weak
        evidence is enough where it is for the products that are stated.
        """
        parts = {"matrices": "linear", "output": "linear", "norms": "norm", "embedding": "embedding"}
        known = {
            group
            for group, e in self.groups.items()
            if (e.fits or e.known) and (not e.weak or group != "linear" or e.base == stated.name)
        }
        held = [
            f"{part}={kind}"
            for part, group in parts.items()
            if group in known and (kind := getattr(self.arithmetic, part)) is not None
        ]
        return Fingerprint(arithmetic_named("+".join([stated.name, *held])), instead=stated.name) if held else None

    @property
    def stated(self) -> dict[str, str]:
        """One string a group, for the verdict."""
        if not self.phases:
            return self._stated
        told: dict[str, dict[str, list[int]]] = {}
        for tokens, found in self.phases:
            for group, says in found._stated.items():  # noqa: SLF001 - of the same class
                told.setdefault(group, {}).setdefault(says, []).append(tokens)
        return {group: _by_tokens(names) if len(names) > 1 else next(iter(names)) for group, names in told.items()}

    @property
    def _stated(self) -> dict[str, str]:
        """One string a group, of the first step."""
        assumed = described(self.arithmetic)
        stored = self.arithmetic.weights_and_results
        found = {
            group: str(evidence.called(stored) if stored in evidence.same else evidence)
            for group, evidence in self.groups.items()
        }
        if "held" in assumed and any(e.held and e.weak for e in self.groups.values()):
            found["held"] = f"{assumed['held']} (weak evidence)"
        keys, values = found.pop("keys", assumed["cache"]), found.pop("values", assumed["cache"])
        found["cache"] = keys if keys == values else f"{keys} keys, {values} values"
        found.pop("embedding", None)
        if "results" in found and not self.groups["results"].level:
            del found["results"]  # nobody asks how an engine adds, unless it is unknown
        return assumed | found


def _by_tokens(names: dict[str, list[int]]) -> str:
    """What holds for steps of which numbers of tokens: ``bf16-operands in steps of 40 tokens, f32 in steps of 1``."""
    return ", ".join(f"{name} in steps of {_tokens(sorted(numbers))}" for name, numbers in names.items())


def _tokens(numbers: Sequence[int]) -> str:
    said = "1 token" if numbers[-1] == 1 else f"{numbers[-1]} tokens"
    return said if len(numbers) == 1 else f"{numbers[0]} to {said}"


def described(arithmetic: Arithmetic) -> dict[str, str]:
    """The arithmetic of each group, where it was not found but taken."""
    plain = arithmetic.weights_and_results or ("f64" if arithmetic.dtype is np.float64 else "f32")
    operands = {"f16": "f16-operands", "bf16": "bf16-operands"}
    attention = operands.get(arithmetic.attention or "", arithmetic.attention) or plain
    keys, values = arithmetic.keys or plain, arithmetic.values or plain
    return {
        "linear": operands.get(arithmetic.products or "", arithmetic.products) or plain,
        "norm": plain,
        "attention": f"{attention}+flash" if arithmetic.flash else attention,
        "cache": keys if keys == values else f"{keys} keys, {values} values",
        **({} if arithmetic.holds_as_the_file else {"held": _held(arithmetic)}),
    }


def _held(arithmetic: Arithmetic) -> str:
    """What weights are held in: one word where it is the same for all of them."""
    parts: dict[str, list[str]] = {}
    for part in HELD:
        parts.setdefault(getattr(arithmetic, part) or "the file's own", []).append(part)
    if len(parts) == 1:
        return next(iter(parts))
    return ", ".join(f"{kind} ({', '.join(of)})" for kind, of in parts.items())


def declared(model: Model, trace: Trace) -> Arithmetic | None:
    """The arithmetic that a trace states, where it is one, and one that the model's heads and weights can have."""
    with suppress(ModelError):
        return _stated_by(model, trace)
    return None


def not_taken(model: Model, trace: Trace) -> str | None:
    """Why a trace cannot be judged in the arithmetic that it states; None where it can, or states none."""
    try:
        _stated_by(model, trace)
    except ModelError as error:
        return f"the arithmetic that the trace states was not taken, but found from its numbers: {error}"
    return None


def _stated_by(model: Model, trace: Trace) -> Arithmetic | None:
    """The arithmetic that a trace states; None where it states none.

    Raises
    ------
    ModelError
        For a name that is none, and for one that does not go with the model.
    """
    name = trace.engine.get("arithmetic")
    if name is None:
        return None
    if not isinstance(name, str):
        raise ModelError(f"arithmetic {str(name)!r:.60} is no name: give one such as 'f32' or 'f32+held=f16'")
    found = arithmetic_named(name)
    if not {found.keys, found.values}.isdisjoint(QUANTISED) and model.hp.head_dim % BLOCK:
        raise ModelError(
            f"arithmetic {name!r:.60}: a cache in blocks of {BLOCK} does not hold heads of {model.hp.head_dim} numbers"
        )
    kinds = {kind for part in HELD if (kind := getattr(found, part)) is not None}
    for tensor, info in model.gguf.tensors.items():
        for kind in kinds if len(info.shape) > 1 else ():
            if not holding(kind).divides(info.shape[-1]):
                raise ModelError(
                    f"arithmetic {name!r:.60}: rows of {info.shape[-1]} numbers ('{tensor}') are no whole groups of "
                    f"{kind}"
                )
    return found


def fits(sites: Sequence[SiteVerdict]) -> bool:
    """Whether most sites of every point are below their floor at each step, of those judged on their own inputs.

    Attention in one piece, whose scores nobody recorded, counts too.
    """
    wrong: dict[tuple[str, int], list[bool]] = {}
    for site in sites:
        group = BY_NAME.get(site.op)
        alone = not site.segment or (group == "attention" and len(site.segment) == 2)  # noqa: PLR2004 - kq, kq_soft_max
        if site.local_error is not None and alone and group is not None:
            wrong.setdefault((site.point, site.step), []).append(site.status is Status.DIVERGES)
    return all(2 * sum(values) < len(values) for values in wrong.values())


BY_NAME = {op.__name__: group for op, group in GROUPS.items()} | {"append": "cache"}
