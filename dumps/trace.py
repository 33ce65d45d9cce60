"""A trace: everything one engine recorded in one run, in memory or on disk."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from firstdiff.dumps.errors import TraceError
from firstdiff.dumps.named_array import NamedArray, fitting_axes
from firstdiff.dumps.points import Kind, kind_of
from firstdiff.dumps.site import Site, as_site
from firstdiff.dumps.tensors import Held, Real, Tensor, dtype_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from firstdiff.dumps.site import Step
    from firstdiff.dumps.understood import Named, Unknown


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Trace:
    """What one engine recorded. Open one with `open_trace`, or make one with `Trace.from_arrays`.

    Parameters
    ----------
    path
        Where it is on disk, None for one in memory.
    engine, model
        What the manifest says about them: name, version, backend, arithmetic, options; file, sha256.
    steps
        The tokens and positions of each forward pass that can be read.
    tensors
        The recorded tensors in execution order, read when asked for.
    complete
        False if the run was cut short, or if steps of it cannot be read.
    notes
        What the reader should know, such as ``step 3 is unreadable: …``.
    names
        The names' convention, or a table from the engine's names to points. None if nothing says it, and the
        names are points as they stand or are not understood.
    layouts
        The axes of a point's tensors, outermost first, where the manifest gives them.
    unknown
        The names that are not understood. Their tensors are at the sites of the names themselves.
    named
        How each of the engine's names was read; empty for a trace in memory, whose sites are given.
    says_tokens
        Whether the tokens are the trace's own, and not those of whoever opened it.
    """

    path: Path | None
    engine: dict[str, Any]
    model: dict[str, Any]
    steps: tuple[Step, ...]
    tensors: Mapping[Site, Tensor]
    complete: bool = True
    notes: tuple[str, ...] = ()
    names: str | dict[str, str] | None = "firstdiff"
    layouts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unknown: tuple[Unknown, ...] = ()
    named: tuple[Named, ...] = ()
    says_tokens: bool = True

    def sites(self) -> list[Site]:
        """Return the recorded sites in execution order."""
        return list(self.tensors)

    def __repr__(self) -> str:
        engine = ":".join(str(self.engine[key]) for key in ("name", "backend") if self.engine.get(key)) or "an engine"
        tokens = ", ".join(str(len(step.tokens)) for step in self.steps)
        return f"<Trace of {engine}: {len(self.tensors):,} sites, tokens of each step {tokens}>"

    def __iter__(self) -> Iterator[Site]:
        return iter(self.tensors)

    def __contains__(self, site: object) -> bool:
        return (as_site(site) if isinstance(site, str | tuple) else site) in self.tensors

    @overload
    def __getitem__(self, site: Site) -> Real: ...
    @overload
    def __getitem__(self, site: str | tuple[str, int | None] | tuple[str, int | None, int]) -> NamedArray: ...
    def __getitem__(self, site: Site | str | tuple[Any, ...]) -> Real | NamedArray:
        """Return a site's values, read-only, as float32 or float64 (see `firstdiff.dumps.tensors.widened`).

        Parameters
        ----------
        site
            A site; or for people ``"Kcur_rope-3@1"`` or ``"Kcur_rope", 3, 1`` (point, layer, step), which give an array
            with its axes named.

        Raises
        ------
        KeyError
            If the site is not recorded.
        TraceError
            If its file has gone or shrunk since the trace was opened.
        """
        if isinstance(site, Site):
            return self._tensor(site).read()
        found = as_site(site)
        values = self._tensor(found).read()
        steps = self.steps[0 if kind_of(found.point) is Kind.CACHE else found.step : found.step + 1]
        tokens = sum(len(step.tokens) for step in steps)
        return NamedArray(values, fitting_axes(found.point, values.shape, tokens, self.layouts.get(found.point)))

    def shape(self, site: Site) -> tuple[int, ...]:
        """Return a site's recorded shape without reading its values."""
        return self._tensor(site).shape

    def dtype(self, site: Site) -> str:
        """Return the dtype a site was recorded in, such as ``f16``, ``bf16``, ``f8_e4m3`` or ``i32``."""
        return self._tensor(site).dtype

    def without(self, drop: Callable[[Site], bool]) -> Trace:
        """Return the trace as if the sites for which `drop` is true had not been recorded."""
        kept = {site: tensor for site, tensor in self.tensors.items() if not drop(site)}
        return replace(self, tensors=kept)

    @classmethod
    def from_arrays(
        cls,
        steps: Sequence[Step],
        tensors: Mapping[Site, NDArray[Any]],
        *,
        engine: dict[str, Any],
        model: dict[str, Any],
        names: str | dict[str, str] | None = "firstdiff",
        layouts: Mapping[str, tuple[str, ...]] | None = None,
    ) -> Trace:
        """Make a trace of arrays in memory, which are not copied.

        Parameters
        ----------
        steps
            The forward passes.
        tensors
            The recorded arrays by site, in execution order.

        Raises
        ------
        TraceError
            If a site's step is not among the steps, or an array's dtype cannot be recorded.
        """
        held: dict[Site, Tensor] = {}
        for site, values in tensors.items():
            if site.step >= len(steps):
                raise TraceError(f"{site}: there is no step {site.step}, only {len(steps)} steps")
            array = np.asarray(values)
            held[site] = Held(array, dtype_of(array))
        return cls(None, engine, model, tuple(steps), held, names=names, layouts=layouts or {})

    def _tensor(self, site: Site) -> Tensor:
        try:
            return self.tensors[site]
        except KeyError:
            raise KeyError(str(site)) from None
