"""Progress: what is being done, shown on a terminal while it is done, and told to nobody else."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from firstdiff.errors import escaped

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

Watch = Callable[[int, int | None], None]
"""Called with the step and the layer (None outside the layers) whenever they have changed."""


class Progress:
    """One bar: what is being done, and at which layer. Nothing appears where nobody watches.

    Used as a context manager it wipes the bar at the end, whatever ended it.

    Parameters
    ----------
    stream
        Where the bar is drawn, if that is a terminal; None draws none.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None and stream.isatty() else None
        self._bars: Bars | None = None
        self._task: Any = None
        self._part = self._text = ""

    def part(self, text: str) -> None:
        """Name the part of the work that begins: it stands before all that is said of it."""
        self._part = f"{text}: " if text else ""

    def say(self, text: str) -> None:
        """Say what begins now; nothing ("") wipes the bar, so that others can write."""
        if self._stream is None:
            return
        if not text:
            self.end()
            return
        bars = self._bars or self._begun(self._stream)
        self._text = self._part + escaped(text)
        bars.reset(self._task, description=self._text, total=None)

    def layers(self, layers: int, steps: int = 1) -> Watch:
        """Say that what is being done goes through so many layers in so many steps, and return what it shall call."""

        def entered(step: int, layer: int | None) -> None:
            if self._bars is not None:
                place = f"step {step}" if layer is None else f"layer {layer} of step {step}"
                done = step * layers + (layer or 0)
                self._bars.update(
                    self._task, total=layers * steps, completed=done, description=f"{self._text}, {place}"
                )

        return entered

    def end(self) -> None:
        """Wipe the bar."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()

    def _begun(self, stream: TextIO) -> Bars:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            console=Console(file=stream),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bars.add_task("", total=None)
        self._bars.start()
        return self._bars


QUIET = Progress()
"""Shown to nobody."""
