"""What can go wrong outside of the model and of the traces, and the exit codes of all that can."""

UNREADABLE, USAGE = 3, 2


class CaptureError(RuntimeError):
    """llama.cpp could not be run or read. One clear line: what, where, what to do."""


class UsageError(ValueError):
    """A command was asked for something that cannot be: exit code 2."""


def exit_code(error: BaseException) -> int | None:
    """The exit code of an error of ours or of the system; None for a fault of firstdiff's own."""
    from firstdiff.dumps.errors import TraceError
    from firstdiff.model.errors import ModelError

    if isinstance(error, UsageError):
        return USAGE
    return UNREADABLE if isinstance(error, TraceError | ModelError | CaptureError | OSError) else None


def escaped(text: str, keep: str = "") -> str:
    """Write control characters, and those that turn a text's direction, as escapes; those in `keep` stay.

    Paths, logs and the output of engines smuggle them into messages.
    """
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def told(error: BaseException) -> str:
    """What an error says, in one line."""
    if not isinstance(error, OSError):
        return str(error)
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"
