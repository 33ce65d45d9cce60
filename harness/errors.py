"""What can go wrong outside of the model and of the traces."""


class CaptureError(RuntimeError):
    """llama.cpp could not be run or read. One clear line: what, where, what to do."""


class UsageError(ValueError):
    """A command was asked for something that cannot be: exit code 2."""
