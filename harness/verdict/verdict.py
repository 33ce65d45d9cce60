"""The verdict: one frozen record that every report is rendered from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from firstdiff.dumps.site import Site
from firstdiff.verdict.dump import DumpFinding
from firstdiff.verdict.explanations import CounterCheck, Explanation, Failed
from firstdiff.verdict.sensitivity import Sensitivity
from firstdiff.verdict.sites import Detail, SiteVerdict, Status

if TYPE_CHECKING:
    from pandas import DataFrame


PASSED = ("agrees", "not recorded", "not checked")
"""What preflight says of a check that found nothing wrong."""


UNCOMPARED = 0.2
"""Where more than this share of the recorded sites could not be compared, that the others agree is no pass. In a dump
that begins in the middle, attention is a sixth of the sites."""


def broken(preflight: Mapping[str, str]) -> dict[str, str]:
    """What of the input contract (tokens, positions, weights, model) does not hold, and how."""
    return {check: says for check, says in preflight.items() if says not in PASSED}


@dataclass(frozen=True, slots=True)
class Logits:
    """The last token's logits of one step against another engine's free-running ones.

    `kl` is the divergence of the candidate's distribution from the other's, in nats; `margin` is the other's top-1
    logit less its logit of the candidate's top-1, or less its second where both agree. `noise` is what the two
    arithmetics change the logits by: the root mean square difference of the centred logits, where every operation of
    the candidate up to them was judged and is right. It is None where that is not so: the difference is a fault's then,
    or may be.
    """

    step: int
    top1: int
    top1_against: int
    margin: float
    kl: float
    noise: float | None

    @property
    def top1_agrees(self) -> bool:
        """Whether both name the same token."""
        return self.top1 == self.top1_against

    @property
    def within_noise(self) -> bool:
        """Whether another top-1 token says nothing: the margin is no larger than a few times the noise."""
        return self.noise is not None and self.margin <= 4 * self.noise


@dataclass(frozen=True, slots=True)
class Witness:
    """Another engine judged on the same tokens: whether the reference can be trusted where the candidate diverges.

    Parameters
    ----------
    engine
        Its name; llama.cpp's as a rule.
    agrees, diverges
        How many of its sites agree, and those that diverge.
    broken
        What of the input contract does not hold for its trace, and how.
    judged_too
        Whether the verdict is about this engine as well as the candidate, as in ``firstdiff diff``: it diverges if
        either does.
    """

    engine: str
    agrees: int
    diverges: tuple[Site, ...]
    broken: dict[str, str] = field(default_factory=dict)
    judged_too: bool = False


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
    dump: tuple[DumpFinding, ...] = ()  # where it does not hold what the engine computed
    explanations: tuple[Explanation, ...] = ()
    counter_check: CounterCheck | None = None
    failed: tuple[Failed, ...] = ()  # hypotheses that could not be tried: the explanations stand without them
    sensitivity: tuple[Sensitivity, ...] = ()  # how small a fault would have shown, where all agrees
    details: dict[Site, Detail] = field(default_factory=dict)  # by site, where they were asked for
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
        return broken(self.preflight)

    @property
    def verdict(self) -> str:
        """``agrees``, ``diverges``, or ``incomparable`` where too little could be compared: an error, never a pass."""
        if self.judged and (self.first or self.broken or self.beside or self.broken_beside):
            return "diverges"
        return "agrees" if self.judged and not self.uncompared else "incomparable"

    @property
    def uncompared(self) -> str:
        """Why this is no pass although nothing diverges: what of the recorded could not be compared; else empty."""
        logits = [s for s in self.sites if s.point == "result_output" and s.status is Status.NOT_COMPARABLE]
        if logits:
            return f"the logits could not be compared at {len(logits)} of {len(self.tokens)} steps"
        count = self.coverage
        missed, recorded = count["not_comparable"], count["recorded"]
        if missed > UNCOMPARED * recorded:
            return f"{missed:,} of {recorded:,} recorded sites could not be compared"
        return ""

    @property
    def beside(self) -> tuple[Site, ...]:
        """Sites at which the second of two traces diverges, where both are judged."""
        return self.witness.diverges if self.witness is not None and self.witness.judged_too else ()

    @property
    def broken_beside(self) -> dict[str, str]:
        """What of the input contract does not hold for the second of two traces, where both are judged."""
        return self.witness.broken if self.witness is not None and self.witness.judged_too else {}

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
    def dump_next(self) -> tuple[Site, ...]:
        """Sites whose recording would narrow the first divergence down, in execution order, a tensor's name once.

        Of a segment that spans several layers these are their outputs alone, which name the layer to look into.
        What was recorded and is not comparable is not asked for again.
        """
        if self.first is None:
            return ()
        spanned = set(self.first.segment)
        segment = [s for s in self.sites if s.site in spanned]
        missing = [s for s in segment if s.status is Status.NOT_RECORDED]
        outputs = [s for s in missing if s.point == "l_out"]
        layers = {s.layer for s in segment if s.layer is not None}
        wanted = outputs if outputs and len(layers) > 1 else missing
        return tuple({s.site.key: s.site for s in reversed(wanted)}.values())[::-1]

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
        from firstdiff.reports.sentences import sentences

        return f"<Verdict {self.verdict}: {sentences(self)[0]}>"

    def _repr_html_(self) -> str:
        from firstdiff.reports.notebook import fragment

        return fragment(self)

    def to_json(self) -> str:
        """The verdict as ``verdict.json`` holds it, ending in a newline. The same verdict gives the same bytes."""
        from firstdiff.verdict.writing import to_json

        return to_json(self)
