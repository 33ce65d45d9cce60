"""An engine that is a server with OpenAI's HTTP interface: it gives the log probabilities of probable tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from firstdiff.engines.serving import Reply, Server, serving
from firstdiff.errors import CaptureError
from firstdiff.model.probes.most_probable import piece
from firstdiff.probing.completion import logprobs_of
from firstdiff.probing.engine import Floats

OK, MISSING = 200, 404

COMPLETIONS = "/v1/completions"

USUAL = (20, 5)
"""How many tokens servers give at most where they do not give as many as one likes: vLLM, and OpenAI."""


@dataclass(slots=True, eq=False)
class ServerEngine:
    """An engine that is a server: it is started anew for each model, asked once, and ended.

    Parameters
    ----------
    command
        With ``{model}`` and ``{port}``: see :func:`firstdiff.engines.serving.serving`.
    timeout
        Seconds that a run may take.
    counts
        How many of the most probable tokens to ask for, and what else to try where that is refused.
    """

    command: str
    timeout: float
    counts: Sequence[int]
    _ways: list[tuple[int, bool]] = field(default_factory=list)

    @classmethod
    def of(cls, command: str, timeout: float, top: int | None, most: int) -> ServerEngine:
        """A server that is asked for `top` tokens, or for `most`, or as many as it gives."""
        return cls(command, timeout, (top,) if top is not None else (most, *USUAL))

    @property
    def name(self) -> str:
        """What reports call it."""
        return "your server"

    @property
    def decodes(self) -> bool:
        """A server cannot be told how many tokens to run at a time."""
        return False

    def logits(self, model: Path, tokens: Sequence[int], width: int, parts: Sequence[int] = ()) -> Floats:  # noqa: ARG002 - it takes none
        """Log probabilities of the last token [1, width]; NaN where it gives none.

        Raises
        ------
        CaptureError
            Where the server does not start or answer, or answers with something else.
        """
        with serving(self.command, model=model, timeout=self.timeout) as server:
            reply = self._completed(server, tokens)
        return logprobs_of(reply, tokens, width)

    def _completed(self, server: Server, tokens: Sequence[int]) -> dict[str, Any]:
        """The answer to the prompt: as ids, and as a text where these are refused."""
        name = _served(server.asked("/v1/models"))
        for count, ids in self._ways or product(self.counts, (True, False)):
            body = {
                "model": name,
                "prompt": list(tokens) if ids else "".join(map(piece, tokens)),
                "max_tokens": 1,
                "temperature": 0,
                "logprobs": count,
            }
            reply = server.asked(COMPLETIONS, body)
            if reply.status == OK:
                self._ways = [(count, ids)]
                return _object(reply)
            if reply.status == MISSING:
                break
        raise CaptureError(
            f"--server: {COMPLETIONS} answers with status {reply.status}: {reply.beginning}{_hint(reply)}"
        )


def _served(reply: Reply) -> str:
    """The name that a server has given its model; some refuse another one."""
    try:
        return str(json.loads(reply.body)["data"][0]["id"])
    except (ValueError, RecursionError, KeyError, IndexError, TypeError):
        return "probe"


def _object(reply: Reply) -> dict[str, Any]:
    try:
        made = json.loads(reply.body)
    except (ValueError, RecursionError):
        made = None
    if not isinstance(made, dict):
        raise CaptureError(f"--server: what {COMPLETIONS} answers is no JSON object: {reply.beginning}")
    return made


def _hint(reply: Reply) -> str:
    if reply.status == MISSING:
        return ": let it serve OpenAI's text completions, and under the model's name that it lists"
    if b"logprob" in reply.body:
        return ": start it with log probabilities (llama-cpp-python: --logits_all true), or ask for fewer with --top"
    return ""
