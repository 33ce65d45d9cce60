"""All tests, of one level or of both."""

from __future__ import annotations

from firstdiff.conformance.definition import Level, Test
from firstdiff.conformance.family_tests import family_tests
from firstdiff.conformance.llama_tests import llama_tests


def suite(level: Level) -> list[Test]:
    """The tests of a level; the first is the plain model, by which an engine's arithmetic is found."""
    return [test for test in (*llama_tests(), *family_tests()) if level == "full" or test.level == "core"]
