"""The Python API: record an engine, open a dump, judge it, and ask why. Reached as ``firstdiff.record`` and so on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache
from os import PathLike
from pathlib import Path

from firstdiff.blas import one_thread
from firstdiff.dumps import Site, Trace, open_trace
from firstdiff.dumps.site import as_site
from firstdiff.engines.opening import open_reference
from firstdiff.errors import UsageError
from firstdiff.explaining.budget import SECONDS
from firstdiff.hypotheses.planting import Planted, planted
from firstdiff.model.engine import Model
from firstdiff.runs import judge, recording
from firstdiff.runs.admission import admitted
from firstdiff.runs.folder import run_folder
from firstdiff.runs.prompt import Input, vocabulary_of
from firstdiff.runs.run import Run
from firstdiff.verdict import Explanation, Failed, Verdict

File = str | PathLike[str]

AnySite = Site | str | tuple[str, int | None] | tuple[str, int | None, int]
"""A site, its printed name, or point and layer (and step)."""


def record(
    model: File,
    *,
    prompt: str | None = None,
    tokens: Sequence[int] | Trace | None = None,
    engine: str = "llama.cpp:cpu",
    decode: int = 0,
    chat: bool = False,
    bugs: Sequence[str | Planted] = (),
    out: File | None = None,
) -> Trace:
    """Run an engine of ours on a model, and keep every intermediate.

    Parameters
    ----------
    model
        A GGUF file.
    prompt, tokens
        What to run: a text, which llama.cpp tokenises; token ids; or a trace, whose steps are run again. By default a
        text of some 40 tokens.
    engine
        ``llama.cpp:cpu``, ``reference:f64``, ``reference:f32``, ``reference:ggml-cpu`` and so on.
    decode
        Steps to decode greedily after the prompt.
    chat
        Put the prompt into the model's chat template.
    bugs
        Hypotheses to make true in a reference engine, by id (``rope-base``) or id and layer (``rope-base@3``).
    out
        Folder of the trace; by default a new one under ``firstdiff-runs``.

    Raises
    ------
    UsageError
        For an engine or a bug that there is not, or for both a prompt and tokens.
    ModelError
        For a model that cannot be read, or tokens that it cannot run.
    CaptureError
        Where llama.cpp is needed and is not installed, or fails.

    Examples
    --------
    >>> import firstdiff as fd
    >>> trace = fd.record(model, tokens=[1, 70, 71], engine="reference:f32")
    >>> trace
    <Trace of reference:f32: 79 sites, tokens of each step 3>
    >>> trace["Kcur_rope", 3].axes
    ('token', 'head', 'head_dim')
    >>> trace["kq_soft_max", 0].sum(-1).round(6)[0]
    array([1., 1., 1.], dtype=float32)
    """
    path = Path(model)
    if out is None:
        out = run_folder(path) / engine.replace(":", "-")
    plants = [bug if isinstance(bug, Planted) else _planted(bug) for bug in bugs]
    source = _input(prompt, tokens, chat=chat, decode=decode)
    with one_thread():
        return recording.record(path, source, Path(out), engine=engine, decode=decode, threads=1, planted=plants)


def open(  # noqa: A001 - reached as firstdiff.open, as gzip.open is
    path: File, *, names: str | Mapping[str, str] | None = None, tokens: Sequence[int] | None = None
) -> Trace:
    """Open a trace that any engine dumped.

    Parameters
    ----------
    path
        A folder or a file: see :func:`firstdiff.dumps.open_trace`.
    names
        How its names are to be understood: ``firstdiff``, ``llama.cpp``, ``hf``, a table from the engine's names to
        points, or the path of one.
    tokens
        The tokens of all steps, for a dump that does not hold them.

    Raises
    ------
    TraceError
        For a dump that cannot be read.

    Examples
    --------
    >>> import firstdiff as fd
    >>> kept = fd.record(model, tokens=[1, 70, 71], engine="reference:f32", out="kept")
    >>> trace = fd.open("kept")
    >>> trace.steps[0].tokens, trace.shape(trace.sites()[0])
    ((1, 70, 71), (3, 256))
    """
    return open_trace(path, names=names if names is None or isinstance(names, str) else dict(names), tokens=tokens)


def compare(
    candidate: Trace | File,
    model: File,
    *,
    against: Trace | File | None = None,
    prompt: str | None = None,
    chat: bool = False,
    budget: float = SECONDS,
) -> Verdict:
    """Judge a trace: which site is the first to go wrong, and why.

    Parameters
    ----------
    candidate
        A trace, or the path of one.
    model
        The GGUF file that it was made with.
    against
        Another engine's trace of the same tokens, as a witness: drift is measured against it, and where it leaves the
        reference too, the candidate is not blamed. Without it the reference itself runs freely.
    prompt, chat
        The text that was meant to be run, with the model's chat template or without: the candidate's tokens are
        compared with llama.cpp's.
    budget
        Seconds that the search for what explains may take. The verdict says what was not searched.

    Raises
    ------
    TraceError
        For a trace that cannot be read, of another model, or a witness of other tokens.
    ModelError
        For a model that cannot be read.
    CaptureError
        For a prompt where llama.cpp is not installed.

    Examples
    --------
    >>> import firstdiff as fd
    >>> trace = fd.record(model, tokens=[1, 70, 71, 72], engine="reference:f32", bugs=["rope-base@2"])
    >>> verdict = fd.compare(trace, model)
    >>> print(verdict.verdict, verdict.first.site)
    diverges Qcur_rope-2
    >>> frame = verdict.frame()
    >>> list(frame[frame.status == "diverges"].site)
    ['Qcur_rope-2', 'Kcur_rope-2']
    """
    run, trace = Run(opened_model(model), budget=budget), as_trace(candidate)
    witness = None if against is None else as_trace(against)
    source = Input(prompt=prompt, chat=chat)
    with one_thread():
        with nullcontext() if prompt is None else vocabulary_of(run.model) as vocabulary:
            subject = admitted(run, trace, source, vocabulary)
        return judge.judge(run, subject, witness=witness)


class Explanations(tuple[Explanation, ...]):  # noqa: SLOT001 - a tuple cannot have slots with something in them
    """Explanations in execution order. In a notebook they show themselves."""

    failed: tuple[Failed, ...] = ()
    """Hypotheses that could not be tried; none in a firstdiff without defects."""

    def __str__(self) -> str:
        from firstdiff.reports.explanations import explained
        from firstdiff.reports.sentences import untried

        return "\n\n".join(filter(None, [*map(explained, self), untried(self.failed)]))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from firstdiff.reports.notebook import listed

        return listed(self)


def explain(
    what: Verdict | Trace | File, site: AnySite | None = None, *, model: File | None = None, budget: float = SECONDS
) -> Explanations:
    """Say why sites diverge.

    Parameters
    ----------
    what
        A verdict, or a trace to be judged with `model`.
    site
        The one that is asked about; by default all.
    model
        The GGUF file, for a trace.
    budget
        Seconds that the search may take, for a trace.

    Raises
    ------
    UsageError
        For a site that the verdict does not hold, or a trace without a model.

    Examples
    --------
    >>> import firstdiff as fd
    >>> trace = fd.record(model, tokens=[1, 70, 71, 72], engine="reference:f32", bugs=["weight-reinterpreted@1"])
    >>> (why,) = fd.explain(trace, "Kcur-1", model=model)
    >>> why.hypothesis, why.says
    ('weight-reinterpreted', "a weight's row-major buffer read with its dimensions in the other order")
    """
    if isinstance(what, Verdict):
        verdict = what
    elif model is None:
        raise UsageError("a trace is explained with its model: give model=, the GGUF file")
    else:
        verdict = compare(what, model, budget=budget)
    asked = None if site is None else as_site(site)
    if asked is not None and all(s.site != asked for s in verdict.sites):
        raise UsageError(f"{asked}: the verdict has no such site")
    found = Explanations(e for e in verdict.explanations if asked is None or asked in e.sites)
    found.failed = verdict.failed
    return found


def as_trace(given: Trace | File) -> Trace:
    """A trace, opened where its path is given."""
    return given if isinstance(given, Trace) else open_trace(given)


def opened_model(path: File) -> Model:
    """A model; one that is unchanged since it was last opened is not opened again."""
    file = Path(path)
    try:
        stat = file.stat()
    except OSError:
        return open_reference(file)  # says what is wrong
    return _opened(file, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4)  # weights stay in the file: what is held is names and numbers
def _opened(path: Path, _size: int, _time: int) -> Model:
    return open_reference(path)


def _input(
    prompt: str | None, tokens: Sequence[int] | Trace | None, *, chat: bool, decode: int
) -> Input | list[tuple[int, ...]]:
    if prompt is not None and tokens is not None:
        raise UsageError("give a prompt or tokens, not both")
    if tokens is not None and chat:
        raise UsageError("chat is for a text: give prompt in place of tokens")
    if isinstance(tokens, Trace):
        if decode:
            raise UsageError("decode: a trace has its own steps; leave it out")
        return [step.tokens for step in tokens.steps]
    return Input(None if tokens is None else tuple(tokens), prompt, chat)


def _planted(bug: str) -> Planted:
    name, at, layer = bug.partition("@")
    if at and not (layer.isascii() and layer.isdecimal()):
        raise UsageError(f"{bug!r:.60}: after '@' comes a layer, a whole number from 0 on")
    return planted(name, int(layer) if at else None)
