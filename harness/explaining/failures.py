"""Hypotheses that could not be tried: noted, so that they neither cost the verdict nor stay hidden."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from firstdiff.dumps import Site
from firstdiff.explaining.budget import OutOfTime
from firstdiff.hypotheses.hypothesis import Hypothesis
from firstdiff.verdict import Failed

LONGEST = 200  # characters of an exception's message that are kept


@dataclass(frozen=True, slots=True)
class Failures:
    """Notes the hypotheses that raise where they are tried, each once a site.

    Numbers that nobody foresaw shall not cost the verdict, and the defect shall not stay hidden.
    """

    _noted: dict[tuple[str, Site], Failed] = field(default_factory=dict)

    @property
    def noted(self) -> tuple[Failed, ...]:
        """What could not be tried, in the order in which it was."""
        return tuple(self._noted.values())

    def take(self, other: Failures) -> None:
        """Note what others have noted."""
        for key, failed in other._noted.items():
            self._noted.setdefault(key, failed)

    @contextmanager
    def at(self, site: Site, *parts: Hypothesis) -> Iterator[None]:
        """Note an exception that leaves the block as one of these hypotheses, and go on after the block."""
        try:
            yield
        except OutOfTime:
            raise
        except Exception as e:  # noqa: BLE001 - whatever it is, it is noted
            self.note(site, parts, e)

    def note(self, site: Site, parts: tuple[Hypothesis, ...], error: Exception) -> None:
        """Note that a hypothesis, or a pair, could not be tried at a site."""
        id_ = " + ".join(h.id for h in parts)
        told = " ".join(f"{type(error).__name__}: {error}".split())
        self._noted.setdefault((id_, site), Failed(id_, site, told[:LONGEST]))
