"""A server with OpenAI's HTTP interface around an engine that writes logits, and servers that answer something else.

``python stand_in_server.py --model M --port P --engine E``, where E is compiled from ``c/llama.c``; or, for what is no
answer, ``--answers WHAT``. It needs the standard library only, so that it starts at once.
"""

from __future__ import annotations

import argparse
import array
import json
import math
import socket
import struct
import subprocess
import sys
import tempfile
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

FIRST, LETTER = 259, 0x4E00

CANNED: dict[str, tuple[int, str]] = {
    "an error": (500, '{"error": "out of\\nmemory"}'),
    "logits_all": (500, '{"error": "logprobs is not supported for models created with logits_all=False"}'),
    "not found": (404, '{"detail": "Not Found"}'),
    "no JSON": (200, "<html>hello</html>"),
    "a list": (200, "[1, 2]"),
    "deep": (200, "[" * 100_000),
    "no logprobs": (200, '{"choices": [{"text": "a", "logprobs": null}]}'),
    "loading": (503, "Loading model"),
    "nothing": (200, '{"choices": []}'),
}


def float32(x: float) -> float:
    return float(struct.unpack("f", struct.pack("f", x))[0])


class Answers(BaseHTTPRequestHandler):
    """What the server answers."""

    options: argparse.Namespace

    def log_message(self, *of: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.answer(200, json.dumps({"data": [{"id": "the model"}]}))

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        what = self.options.answers
        assert asked["model"] == "the model"
        if what in CANNED:
            self.answer(*CANNED[what])
        elif what == "end":
            raise SystemExit(3)
        elif what == "break off":
            self.connection.shutdown(socket.SHUT_RDWR)
        elif what in ("drip", "flood"):
            self.send_response(200)
            self.end_headers()
            for _ in range(1000):
                self.wfile.write(b" " * (1 << 20 if what == "flood" else 1))
                time.sleep(0.01 if what == "drip" else 0)
        elif isinstance(asked["prompt"], str):
            self.answer(422, "ids are wanted")
        elif asked["logprobs"] > self.options.most:
            self.answer(400, f"logprobs of {self.options.most} tokens at most")
        else:
            self.answer(200, json.dumps(self.completion(asked["prompt"], asked["logprobs"])))

    def completion(self, tokens: list[int], count: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            ids, path = ",".join(map(str, tokens)), Path(folder) / "logits"
            of = self.options.kept or self.options.model
            subprocess.run([self.options.engine, "--model", of, "--tokens", ids, "--logits", path], check=True)
            logits = array.array("f", path.read_bytes())
        row = logits[-(len(logits) // len(tokens)) :]
        total = float32(max(row) + math.log(sum(math.exp(x - max(row)) for x in row)))
        top = sorted(range(len(row)), key=lambda i: -row[i])[:count]
        given = [{"id": i, "token": "", "logprob": float32(row[i] - total)} for i in top]
        if self.options.answers == "llama.cpp":
            logprobs: dict[str, Any] = {"content": [{**given[0], "top_logprobs": given}]}
        else:
            texts = {
                chr(LETTER + i - FIRST) if i >= FIRST else f"token_id:{i}": x["logprob"]
                for i, x in zip(top, given, strict=True)
            }
            logprobs = {"top_logprobs": [texts]}
        return {"choices": [{"logprobs": logprobs}], "usage": {"prompt_tokens": len(tokens)}}

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())


def main() -> None:
    """Serve until it is ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--engine")
    parser.add_argument("--kept", help="the model that it runs instead")
    parser.add_argument("--answers", default="vLLM")
    parser.add_argument("--most", type=int, default=20)
    Answers.options = parser.parse_args()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    HTTPServer(("127.0.0.1", Answers.options.port), Answers).serve_forever()


if __name__ == "__main__":
    main()
