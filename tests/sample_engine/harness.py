"""Run the engine on some tokens, decode greedily, and record what it computes."""

from __future__ import annotations

import argparse

from engine import Engine
from firstdiff_writer import Writer

from model import load


def run(path: str, tokens: list[int], decode: int, dump: str) -> list[int]:
    with Writer(dump, "sample", arithmetic="f32") as writer:
        engine = Engine(load(path), writer.put)
        first, told = 0, []
        for _ in range(1 + decode):
            writer.step(tokens, first)
            logits = engine.step(tokens, first)
            first += len(tokens)
            tokens = [int(logits[-1].argmax())]
            told += tokens
    return told


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("--model", "--tokens", "--decode", "--dump"):
        parser.add_argument(name, required=True)
    given = parser.parse_args()
    run(given.model, list(map(int, given.tokens.split(","))), int(given.decode), given.dump)
