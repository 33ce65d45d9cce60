"""firstdiff: which tensor of an inference engine is the first to go wrong, and why.

In Python, and in a notebook::

    import firstdiff as fd

    trace = fd.record("model.gguf", prompt="The capital of France is")
    verdict = fd.compare("my-dump", "model.gguf", against=trace)
    verdict.frame()
    fd.plot.heatmap(verdict)

What is heavy is loaded when a name is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firstdiff import plot
    from firstdiff.api import compare, explain, open, record  # noqa: A004 - `fd.open`, as in gzip.open

__all__ = ["compare", "explain", "open", "plot", "record"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = import_module("firstdiff.plot") if name == "plot" else getattr(import_module("firstdiff.api"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
