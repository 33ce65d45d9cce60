"""Why public engines fail tests of the suite: what was found by reading or running them, without the suite."""

from __future__ import annotations

CONFIRMED: dict[str, tuple[tuple[str, str], ...]] = {
    "tinygrad": (),
    "transformers": (),
    "convlit": (),
    "ctransformers": (),
}
"""For each engine patterns of tests' names, and why they fail."""
