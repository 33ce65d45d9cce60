"""The command line. Only argparse is imported before a command is known, so that ``--help`` is instant."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from firstdiff.blas import one_thread_from_the_start
from firstdiff.commands.fail import fail
from firstdiff.commands.parser import command_line
from firstdiff.errors import UNREADABLE, USAGE, exit_code, told
from firstdiff.model.workers import workers

INTERRUPTED = 130  # what a shell makes of SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    one_thread_from_the_start()
    parser = command_line()
    options = parser.parse_args(arguments)
    options.arguments = list(sys.argv[1:] if arguments is None else arguments)
    if hasattr(sys.stdout, "reconfigure"):  # a terminal that cannot show a character gets its escape
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        result = _dispatch(parser, options)
        sys.stdout.flush()
    except KeyboardInterrupt as e:
        return fail(f"interrupted: {str(e) or 'nothing was recorded yet'}", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREADABLE
    except Exception as e:
        code = exit_code(e)
        if code is None:
            raise
        return fail(told(e), code)
    return result


def _dispatch(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    if options.command is None:
        return _version() if options.version else _usage(parser)
    name = options.command.replace("-", "_")
    command = import_module(f"firstdiff.commands.{name}")
    # A gate's jobs are processes.
    with workers(None if options.command == "gate" else getattr(options, "jobs", None)):
        return int(getattr(command, name)(options))


def _usage(parser: argparse.ArgumentParser) -> int:
    parser.print_help(sys.stderr)
    return USAGE


def _version() -> int:
    from firstdiff.verdict.provenance import own_version

    print(f"firstdiff {own_version()}")
    return 0
