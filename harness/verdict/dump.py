"""What is wrong with a dump, whatever the engine did: found before any tensor is blamed."""

from __future__ import annotations

from dataclasses import dataclass

from firstdiff.dumps.site import Site


@dataclass(frozen=True, slots=True)
class DumpFinding:
    """One way in which a dump does not hold what the engine computed.

    Parameters
    ----------
    id
        Its kind, such as ``stale-layers``.
    says, fix
        What the dump holds instead and how that is known, and what to do, each in one phrase.
    sites
        The sites concerned, in execution order. They are not judged, unless `judged` is true.
    judged
        Whether the sites are judged all the same, since nothing but a suspicion speaks against the dump.
    """

    id: str
    says: str
    fix: str
    sites: tuple[Site, ...]
    judged: bool = False

    @property
    def reason(self) -> str:
        """Why its sites are not judged."""
        return f"the dump does not hold this tensor ({self.id})"
