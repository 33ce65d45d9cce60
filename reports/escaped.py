"""Names and texts of traces and files are hostile: what does not print is shown as its escape."""

from __future__ import annotations


def escaped(text: str, keep: str = "") -> str:
    """Write control characters, and those that turn a text's direction, as escapes; those in `keep` stay."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)
