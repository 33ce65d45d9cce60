"""The verdict: one frozen record that every report is rendered from, and its file format."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from math import isfinite
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame

PASSED = ("agrees", "not recorded", "not checked")
"""What preflight says of a check that found nothing wrong."""

FORMAT, VERSION = "firstdiff-verdict", 1


class Status(StrEnum):
    """What is said of a site: a closed set."""

    AGREES = "agrees"
    INHERITS = "inherits"
    DIVERGES = "diverges"
    NOT_RECORDED = "not recorded"
    NOT_COMPARABLE = "not comparable"


@dataclass(frozen=True, slots=True)
class Element:
    """One element of a tensor, with both values."""

    index: tuple[int, ...]
    candidate: float
    reference: float


@dataclass(frozen=True, slots=True)
class SiteVerdict:
    """What is said of one site.

    Parameters
    ----------
    site, point, layer, step, op
        Which site, and the reference's operation there.
    status
        See :class:`Status`.
    local_error, floor
        The largest relative error of a token, and the error that a correct engine of that arithmetic stays below.
    tight
        Where the floor is the level of an unknown arithmetic: the floor of the known one nearest to it.
    drift
        Relative difference to another engine's free-running output. Shown, never judged.
    worst, where, not_finite
        For a diverging site: the worst element, where along each axis it is wrong, how many NaN or infinities.
    inputs_right
        Whether nothing upstream of the site diverges.
    segment
        Sites between the last recorded inputs and this one, which were computed and not judged.
    reason
        Why a site is not comparable.
    """

    site: str
    point: str
    layer: int | None
    step: int
    op: str
    status: Status
    local_error: float | None = None
    floor: float | None = None
    drift: float | None = None
    worst: Element | None = None
    where: dict[str, str] | None = None
    not_finite: int = 0
    inputs_right: bool = True
    segment: tuple[str, ...] = ()
    reason: str | None = None
    tight: float | None = None


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of the elements of one tensor that count and are finite; `not_finite` counts the others."""

    mean: float
    rms: float
    low: float
    high: float
    not_finite: int = 0


@dataclass(frozen=True, slots=True)
class Profile:
    """The error along one axis: of each index, or the largest of each `step` neighbours."""

    axis: str
    size: int
    step: int
    errors: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many elements of both tensors lie in each of equally wide bins from `low` to `high`."""

    low: float
    high: float
    candidate: tuple[int, ...]
    reference: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Detail:
    """A closer look at one site: what a page shows of it. See :mod:`firstdiff.detail`.

    Parameters
    ----------
    shape, axes
        Of both tensors.
    candidate, reference
        Statistics of both.
    worst
        The elements that differ most, relative to their token's root mean square, the worst first.
    profiles
        The error along each axis, relative to the same.
    histogram
        Of both; None where nothing is finite.
    scatter
        Pairs of values, candidate's and reference's, of elements spread over the tensor and of the worst.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    candidate: Statistics
    reference: Statistics
    worst: tuple[Element, ...] = ()
    profiles: tuple[Profile, ...] = ()
    histogram: Histogram | None = None
    scatter: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Logits:
    """The last token's logits of one step against another engine's free-running ones.

    `kl` is the divergence of the candidate's distribution from the other's, in nats; `margin` is the other's top-1
    logit less its logit of the candidate's top-1, or less its second where both agree; `noise` the root mean square
    difference of the centred logits.
    """

    step: int
    top1: int
    top1_against: int
    margin: float
    kl: float
    noise: float

    @property
    def top1_agrees(self) -> bool:
        """Whether both name the same token."""
        return self.top1 == self.top1_against

    @property
    def within_noise(self) -> bool:
        """Whether another top-1 token says nothing: the margin is no larger than a few times the noise."""
        return self.margin <= 4 * self.noise


@dataclass(frozen=True, slots=True)
class Witness:
    """Another engine judged on the same tokens: whether the reference can be trusted where the candidate diverges.

    Parameters
    ----------
    engine
        Its name; llama.cpp's as a rule.
    agrees, diverges
        How many of its sites agree, and those that diverge.
    judged_too
        Whether the verdict is about this engine as well as the candidate, as in ``firstdiff diff``: it diverges if
        either does.
    """

    engine: str
    agrees: int
    diverges: tuple[str, ...]
    judged_too: bool = False


@dataclass(frozen=True, slots=True)
class Tried:
    """A hypothesis that was tried at a site, and what it leaves of the local error."""

    hypothesis: str
    says: str
    residual: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why sites diverge, or what can be said of them where no hypothesis fits.

    Parameters
    ----------
    site, sites
        The first of the sites, and all of them, in execution order.
    extent
        Where they are, in words: ``Qcur_rope and Kcur_rope at every layer``.
    hypothesis
        Its id, or two joined by `` + ``; None where none explains.
    says, fix
        What is wrong, and what to do, each in one phrase.
    attributes
        The parameters of the hypothesis.
    error, residual, floor
        The largest local error of the sites, what the hypothesis leaves of it at most, and the largest floor.
    next_best
        The best of the other hypotheses that does not explain, at the first site.
    equals
        Hypotheses that explain as well: the data do not tell them apart.
    separate
        What would tell them apart.
    note
        What else is to be known.
    findings
        Where no hypothesis explains: what the difference looks like, the most useful first.
    tried
        The hypotheses tried at the first site, least residual first.
    """

    site: str
    sites: tuple[str, ...]
    extent: str
    hypothesis: str | None
    says: str
    fix: str
    attributes: dict[str, Any]
    error: float
    residual: float | None
    floor: float
    next_best: Tried | None = None
    equals: tuple[Tried, ...] = ()
    separate: str | None = None
    note: str | None = None
    findings: tuple[str, ...] = ()
    tried: tuple[Tried, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """A hypothesis that could not be tried at a site: a defect of firstdiff, and of no engine.

    Parameters
    ----------
    hypothesis
        Its id, or two joined by `` + ``.
    site
        Where it was tried.
    error
        The exception's type and message, in one line.
    """

    hypothesis: str
    site: str
    error: str


@dataclass(frozen=True, slots=True)
class CounterCheck:
    """The run replayed with the explanations' changes made in the reference.

    Parameters
    ----------
    applied
        Ids of the hypotheses that were applied.
    left
        Sites that diverge all the same.
    judged
        Sites that agree then, and those of `left`; 0 where it is not known, as in a file of an earlier version.
    """

    applied: tuple[str, ...]
    left: tuple[str, ...]
    judged: int = 0

    @property
    def agrees(self) -> bool:
        """Whether nothing is left."""
        return not self.left


@dataclass(frozen=True, slots=True, repr=False)
class Verdict:
    """The whole result of judging one candidate. In a notebook it shows itself."""

    candidate: str
    against: str
    model: dict[str, Any]
    tokens: tuple[tuple[int, ...], ...]
    arithmetic: dict[str, str]
    sites: tuple[SiteVerdict, ...]
    logits: tuple[Logits, ...] = ()
    witness: Witness | None = None
    notes: tuple[str, ...] = ()
    layouts: dict[str, str] = field(default_factory=dict)  # of points that are not laid out plainly
    pieces: tuple[str, ...] = ()  # text of the tokens of step 0, where a tokeniser was at hand
    preflight: dict[str, str] = field(default_factory=dict)
    explanations: tuple[Explanation, ...] = ()
    counter_check: CounterCheck | None = None
    failed: tuple[Failed, ...] = ()  # hypotheses that could not be tried: the explanations stand without them
    details: dict[str, Detail] = field(default_factory=dict)  # by site, where they were asked for
    run: dict[str, Any] = field(default_factory=dict)  # the command and the versions, where a command judged

    @property
    def diverging(self) -> tuple[SiteVerdict, ...]:
        """Every site with an error of its own, in execution order."""
        return tuple(s for s in self.sites if s.status is Status.DIVERGES)

    @property
    def first(self) -> SiteVerdict | None:
        """The first divergence in execution order."""
        return next(iter(self.diverging), None)

    @property
    def judged(self) -> int:
        """Sites that were compared."""
        return sum(s.status in (Status.AGREES, Status.INHERITS, Status.DIVERGES) for s in self.sites)

    @property
    def broken(self) -> dict[str, str]:
        """What of the input contract (tokens, positions, weights, model) does not hold, and how."""
        return {check: says for check, says in self.preflight.items() if says not in PASSED}

    @property
    def verdict(self) -> str:
        """``agrees``, ``diverges``, or ``incomparable`` where nothing could be compared: an error, never a pass."""
        if not self.judged:
            return "incomparable"
        return "diverges" if self.first or self.broken or self.beside else "agrees"

    @property
    def beside(self) -> tuple[str, ...]:
        """Sites at which the second of two traces diverges, where both are judged."""
        return self.witness.diverges if self.witness is not None and self.witness.judged_too else ()

    @property
    def exit_code(self) -> int:
        """Of the process: 0 agrees, 1 diverges, 4 incomparable."""
        return {"agrees": 0, "diverges": 1, "incomparable": 4}[self.verdict]

    @property
    def coverage(self) -> dict[str, int]:
        """How many sites there are, were recorded, and have each status."""
        count = Counter(s.status for s in self.sites)
        recorded = len(self.sites) - count[Status.NOT_RECORDED]
        return {"sites": len(self.sites), "recorded": recorded} | {
            s.value.replace(" ", "_"): count[s] for s in Status if s is not Status.NOT_RECORDED
        }

    @property
    def dump_next(self) -> tuple[str, ...]:
        """Points whose recording would narrow the first divergence down, in execution order.

        Of a segment that spans several layers these are their outputs alone, which name the layer to look into.
        What was recorded and is not comparable is not asked for again.
        """
        if self.first is None:
            return ()
        names = set(self.first.segment)
        segment = [s for s in self.sites if s.site in names]
        missing = [s for s in segment if s.status is Status.NOT_RECORDED]
        outputs = [s for s in missing if s.point == "l_out"]
        layers = {s.layer for s in segment if s.layer is not None}
        wanted = outputs if outputs and len(layers) > 1 else missing
        return tuple(dict.fromkeys(s.site.partition("@")[0] for s in wanted))

    @property
    def worst_error(self) -> float:
        """The largest local error of any site that was judged; 0 if none was."""
        return max((s.local_error for s in self.sites if s.local_error is not None), default=0.0)

    def frame(self) -> DataFrame:
        """Every site as a row of a pandas DataFrame, in execution order.

        Raises
        ------
        ImportError
            Where pandas is not installed.
        """
        from firstdiff.reports.frame import frame

        return frame(self)

    def __repr__(self) -> str:
        from firstdiff.reports.words import sentences

        return f"<Verdict {self.verdict}: {sentences(self)[0]}>"

    def _repr_html_(self) -> str:
        from firstdiff.reports.notebook import fragment

        return fragment(self)

    def to_json(self) -> str:
        """The verdict as ``verdict.json`` holds it, ending in a newline. The same verdict gives the same bytes."""
        logits = [asdict(x) | {"top1_agrees": x.top1_agrees, "within_noise": x.within_noise} for x in self.logits]
        record = {
            "format": FORMAT,
            "version": VERSION,
            "verdict": self.verdict,
            "first": None if self.first is None else _plain(self.first),
            "diverging": [_plain(s) for s in self.diverging],
            "dump_next": list(self.dump_next),
            "explanations": [asdict(e) for e in self.explanations],
            "counter_check": None if self.counter_check is None else _checked(self.counter_check),
            "failed": [asdict(f) for f in self.failed],
            "candidate": self.candidate,
            "against": self.against,
            "witness": None if self.witness is None else _plain_witness(self.witness),
            "model": self.model,
            "tokens": self.tokens,
            "pieces": self.pieces,
            "preflight": self.preflight,
            "arithmetic": self.arithmetic,
            "layouts": self.layouts,
            "coverage": self.coverage,
            "logits": _worst_logits(logits),
            "notes": self.notes,
            "run": self.run,
            "sites": [_plain(s) for s in self.sites],
        }
        text = json.dumps(strict(record), indent=1, allow_nan=False)
        return text.removesuffix("\n}") + f',\n "details": {{{_details(self.details)}}}\n}}\n'


def _plain_witness(witness: Witness) -> dict[str, Any]:
    """The witness's fields; whether it is judged too is said only where it is."""
    return {k: v for k, v in asdict(witness).items() if k != "judged_too" or v}


def _checked(check: CounterCheck) -> dict[str, Any]:
    """The counter-check's fields, without the number that is not known."""
    return {k: v for k, v in asdict(check).items() if k != "judged" or v} | {"agrees": check.agrees}


def _worst_logits(logits: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The step that disagrees most, and all steps beside it."""
    if not logits:
        return None
    return max(logits, key=lambda x: (not x["top1_agrees"], x["kl"])) | {"steps": list(logits)}


def _details(details: dict[str, Detail]) -> str:
    """A line a site: a number a line would make the file several times as long."""
    lines = (
        f"\n  {json.dumps(site)}: {json.dumps(strict(detail), separators=(',', ':'), allow_nan=False)}"
        for site, detail in details.items()
    )
    return ",".join(lines) + ("\n " if details else "")


def _plain(site: SiteVerdict) -> dict[str, Any]:
    """A site's fields, without those that have nothing to say."""
    return {f.name: _value(v) for f in fields(site) if (v := getattr(site, f.name)) != f.default or f.name in _KEPT}


_KEPT = {"site", "point", "layer", "step", "op", "status", "local_error", "floor", "inputs_right"}


def _value(value: Any) -> Any:  # noqa: ANN401 - any field of a record
    return asdict(value) if isinstance(value, Element) else value


def strict(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Give numbers that JSON does not have as the strings ``"nan"``, ``"inf"`` and ``"-inf"``; details as objects."""
    match value:
        case float() if not isfinite(value):
            return str(value)
        case dict():
            return {str(k): strict(v) for k, v in value.items()}
        case list() | tuple():
            return [strict(v) for v in value]
        case Detail() | Statistics() | Profile() | Histogram() | Element():
            return {f.name: strict(getattr(value, f.name)) for f in fields(value)}
    return value
