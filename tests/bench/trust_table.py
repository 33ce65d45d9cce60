"""The table of the bench of trust, and its limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from trust_judging import Outcome


@dataclass(frozen=True)
class Limit:
    """What the share of some outcomes must be."""

    says: str
    part: str
    share: float
    counts: Callable[[Outcome], bool]
    of: Callable[[Outcome], bool] = lambda _: True
    at_least: bool = False

    def measured(self, outcomes: Sequence[Outcome]) -> tuple[int, int]:
        whole = [o for o in outcomes if o.part == self.part and self.of(o)]
        return sum(map(self.counts, whole)), len(whole)

    def holds(self, outcomes: Sequence[Outcome]) -> bool:
        part, whole = self.measured(outcomes)
        return not whole or (part >= self.share * whole if self.at_least else part <= self.share * whole)


def _failed(*kinds: str) -> Callable[[Outcome], bool]:
    return lambda o: bool(set(kinds) & set(o.failed))


_NO_ANSWER = ("error", "too long")

LIMITS = (
    Limit("a site diverges", "clean", 0, _failed("diverges")),
    Limit("a cause or a fault of the dump is claimed", "clean", 0, _failed("cause claimed", "dump finding")),
    Limit("the input contract is said to be broken", "clean", 0, _failed("input contract")),
    Limit("what was recorded is not judged", "clean", 0, _failed("not judged", "logits not compared", "incomparable")),
    Limit("no answer", "clean", 0, _failed(*_NO_ANSWER)),
    Limit("the first site is right", "faults", 0.995, lambda o: o.site, lambda o: o.seen, at_least=True),
    Limit("a right site is accused", "faults", 0.005, _failed("right site accused")),
    Limit("a wrong cause is claimed", "faults", 0.005, _failed("wrong cause")),
    Limit("the right cause is claimed", "faults", 0.9, lambda o: o.right, lambda o: o.seen, at_least=True),
    Limit("no answer", "faults", 0, _failed(*_NO_ANSWER)),
    Limit("the fault of the dump is not named", "dump", 0, _failed("not named")),
    Limit("a right site is accused", "dump", 0, _failed("diverges", "right site accused")),
    Limit("a wrong cause is claimed", "dump", 0, _failed("cause claimed", "wrong cause")),
    Limit("the fault of the engine is not located", "dump", 0, _failed("first site wrong")),
    Limit("no answer", "dump", 0, _failed(*_NO_ANSWER)),
)
"""What the bench must show: of all dumps of a part, or of those that hold the site and show the fault clearly."""

TITLES = {"clean": "Dumps of right engines", "faults": "Dumps of engines with one fault", "dump": "Faulty dumps"}


def broken(outcomes: Sequence[Outcome]) -> list[Limit]:
    """The limits that do not hold."""
    return [limit for limit in LIMITS if not limit.holds(outcomes)]


def table(outcomes: Sequence[Outcome], seconds: float) -> Iterator[str]:
    """The lines of the report."""
    for part, title in TITLES.items():
        of = [o for o in outcomes if o.part == part]
        if of:
            yield from (f"{title}: {len(of):,}", "")
            yield from map(_line, (limit for limit in LIMITS if limit.part == part), [outcomes] * len(LIMITS))
            times = [o.seconds for o in of]
            yield f"  seconds a verdict, median and most: {median(times):.2f}, {max(times):.1f}"
            yield from ("", *_by_value(of), "", *_failures(of), "")
    yield f"{len(outcomes):,} dumps in {seconds:.0f} s"


def _line(limit: Limit, outcomes: Sequence[Outcome]) -> str:
    part, whole = limit.measured(outcomes)
    share = f"{part:,} of {whole:,} ({100 * part / max(whole, 1):.2f} %)"
    bound = f"{'at least' if limit.at_least else 'at most'} {100 * limit.share:g} %"
    return f"  {limit.says:45} {share:26} {bound:16} {'' if limit.holds(outcomes) else 'BROKEN'}".rstrip()


def _by_value(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Of each dimension's values, how many dumps there are and how many verdicts are wrong."""
    yield "  failures of dumps by dimension"
    for name in outcomes[0].recipe:
        whole = Counter(o.recipe[name] for o in outcomes)
        wrong = Counter(o.recipe[name] for o in outcomes if o.failed)
        yield f"    {name}: " + ", ".join(f"{value} {wrong[value]}/{count}" for value, count in sorted(whole.items()))


def _failures(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Each failure with what makes it again."""
    kinds = Counter(kind for o in outcomes for kind in o.failed)
    yield "  " + (", ".join(f"{kind} {count}" for kind, count in kinds.most_common()) or "no failure")
    for o in outcomes:
        yield from failure(o)


def failure(outcome: Outcome) -> Iterator[str]:
    """What is wrong with a verdict, and what makes it again; nothing where nothing is."""
    if outcome.failed:
        yield f"    --part {outcome.part} --only {outcome.seed}: {outcome.detail} ({outcome.seconds:.1f} s)"
        yield f"        {outcome.kind}; {told(outcome.recipe)}"


def told(recipe: Mapping[str, str]) -> str:
    """All values of a dump's dimensions, in a line."""
    return ", ".join(f"{name} {value}" for name, value in recipe.items())
