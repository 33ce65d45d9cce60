"""What can be wrong with a model file."""

_LONGEST_NAME = 80  # ggml's own names end at 63 bytes; a damaged length can make one of megabytes


class ModelError(ValueError):
    """A model file that is damaged, or that this package does not support.

    The message is one line. It starts with the path and says what was found and where, what was
    expected, and what to do.
    """


class NotDescribedError(ModelError):
    """A model that is sound, as far as it was read, and that no architecture file describes."""


def quoted(name: str | bytes) -> str:
    """Return a name taken from a file as one short, printable piece of a message."""
    if len(name) <= _LONGEST_NAME:
        return repr(name)
    return f"{name[:_LONGEST_NAME]!r}…"
