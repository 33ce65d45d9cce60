"""What all traces of one run are judged with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from firstdiff.engines.identity import Identity, identity
from firstdiff.engines.llamacpp import PLAIN, Attention
from firstdiff.engines.opening import Tier, open_reference
from firstdiff.engines.threads import threads_for
from firstdiff.explaining.budget import SECONDS
from firstdiff.hypotheses import TABLE, Hypothesis
from firstdiff.model.engine import Model
from firstdiff.progress import QUIET, Progress
from firstdiff.runs.folder import make_folder


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """What all traces of one run are judged with.

    Parameters
    ----------
    model
        The model that the traces were made with, opened by the reference.
    out
        Folder for what is recorded, and for the verdict; None where nothing is kept.
    threads, attention
        How llama.cpp computes, where it is recorded; None for as many threads as model and prompt are worth.
    table
        The hypotheses by which divergences are explained.
    budget
        Seconds that explaining may take, per candidate.
    only
        The one site to search for what explains it, as it is printed; None for all that diverge.
    detailed
        Take the closer look at each site that a page shows.
    progress
        Shows what is being done, and at which layer.
    """

    model: Model
    out: Path | None = None
    threads: int | None = 1
    attention: Attention = PLAIN
    table: Mapping[str, Hypothesis] = field(default_factory=lambda: TABLE)
    detailed: bool = False
    progress: Progress = QUIET
    budget: float = SECONDS
    only: str | None = None

    @property
    def identity(self) -> Identity:
        """What is said of the model: its file's name and SHA-256, which are computed once."""
        return identity(self.model)

    def folder(self) -> Path:
        """Make the folder for what is recorded.

        Raises
        ------
        CaptureError
            Where that cannot be.
        """
        assert self.out is not None, "the run keeps nothing"
        make_folder(self.out)
        return self.out


def begun(
    path: Path,
    *,
    out: Path | None = None,
    threads: int | None = 1,
    attention: Attention = PLAIN,
    detailed: bool = False,
    progress: Progress = QUIET,
    budget: float = SECONDS,
    only: str | None = None,
    tier: Tier | None = None,
) -> Run:
    """Open a model for a run; `tier` says by what: see :func:`firstdiff.engines.opening.open_reference`.

    Raises
    ------
    ModelError
        For a file that cannot be read, or a model that is not supported.
    """
    progress.say("opening the model")
    model = open_reference(path, tier=tier, threads=threads_for(path, threads))
    return Run(model, out, threads, attention, detailed=detailed, progress=progress, budget=budget, only=only)
