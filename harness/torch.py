"""Recording from PyTorch: the public path of :func:`record`."""

from __future__ import annotations

try:
    from firstdiff.engines.pytorch import record
except ModuleNotFoundError as missing:
    if missing.name != "torch":
        raise
    raise ModuleNotFoundError(
        "firstdiff.torch records from PyTorch, which is not installed: pip install 'firstdiff[torch]'", name="torch"
    ) from None

__all__ = ["record"]
