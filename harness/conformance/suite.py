"""All tests, of one level or of both."""

from __future__ import annotations

from firstdiff.conformance.decoding_tests import decoding_tests
from firstdiff.conformance.definition import Level, Test
from firstdiff.conformance.family_tests import family_tests
from firstdiff.conformance.llama_tests import llama_tests


def suite(level: Level) -> list[Test]:
    """The tests of a level; the first is the plain model, by which an engine's arithmetic is found."""
    others = [*llama_tests(), *family_tests()]
    return [test for test in (*others, *decoding_tests(others)) if level == "full" or test.level == "core"]
