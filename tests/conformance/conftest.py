"""What tests of the suite share."""

from __future__ import annotations

from builders.command_line import firstdiff

__all__ = ["firstdiff"]
