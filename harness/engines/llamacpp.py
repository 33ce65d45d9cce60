"""llama.cpp in this process: loading, tokenising and decoding, through llama-cpp-python's low-level API."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from firstdiff.engines import ggml
from firstdiff.engines.llamacpp_chatter import chatter
from firstdiff.errors import CaptureError, UsageError
from firstdiff.interruption import held_back
from firstdiff.model.arithmetic import Arithmetic, ggml_cpu
from firstdiff.model.flash import padded
from firstdiff.model.quants import BY_NAME
from firstdiff.model.rounding import BLOCK, QUANTISED

Hook = Callable[[int, bool, object], bool]


@dataclass(frozen=True, slots=True)
class Attention:
    """llama.cpp's options of attention: flash attention, and the types of the KV cache.

    Parameters
    ----------
    flash
        Flash attention, which makes no ``kq`` and no ``kq_soft_max``.
    keys, values
        ``f16``, ``bf16``, ``q8_0`` or ``q4_0``.
    """

    flash: bool = False
    keys: str = "f16"
    values: str = "f16"

    @classmethod
    def of(cls, *, flash: bool, kv: str) -> Self:
        """Options for a cache of a type; without flash attention llama.cpp quantises keys alone, and values are f16."""
        return cls(flash, kv, kv if flash or kv not in QUANTISED else "f16")

    def arithmetic(self, threads: int = 1) -> Arithmetic:
        """How llama.cpp's CPU backend rounds with these options and so many threads."""
        return ggml_cpu(flash=threads if self.flash else 0, keys=self.keys, values=self.values)

    def check(self, head_dim: int) -> None:
        """Refuse a quantised cache of heads that are no whole blocks: llama.cpp makes none, or a broken one.

        Raises
        ------
        UsageError
            Naming both sizes.
        """
        if self.keys in QUANTISED and head_dim % BLOCK:
            raise UsageError(
                f"--kv {self.keys}: quantises blocks of {BLOCK}, which heads of {head_dim} dimensions are no multiple "
                "of: give --kv f16 or bf16"
            )

    @property
    def stated(self) -> dict[str, Any]:
        """The options as a trace states them."""
        return {
            "flash_attention": self.flash,
            "kv": self.keys if self.keys == self.values else f"{self.keys} keys, {self.values} values",
        }


PLAIN = Attention()


@dataclass
class Context:
    """One llama.cpp context: a KV cache and its decode calls."""

    _pointer: Any
    _n_vocab: int
    _hook: Any

    def decode(self, tokens: Sequence[int], position: int, *, kept: bool = True) -> npt.NDArray[np.float32]:
        """One forward pass: tokens [T] from `position` on -> logits [T, n_vocab] of every token.

        Where they need not be `kept`, they are llama.cpp's own, which the next pass overwrites.

        Raises
        ------
        CaptureError
            Where llama.cpp refuses. An exception inside the hook is raised as it is.
        """
        llama = ggml.bindings()
        batch = llama.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i] = token, position + i
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
                batch.logits[i] = 1  # of every token: the last layer is cut to the rows that are asked for
            with held_back(self._stop):
                failed = llama.llama_decode(self._pointer, batch)
        finally:
            llama.llama_batch_free(batch)
        if self._hook is not None and self._hook.failure is not None:
            raise self._hook.failure
        if failed:
            raise CaptureError(
                f"llama.cpp failed to decode {len(tokens)} tokens from position {position} (code {failed})"
            )
        logits = llama.llama_get_logits(self._pointer)
        found = np.ctypeslib.as_array(logits, (len(tokens), self._n_vocab))
        return found.copy() if kept else found

    def _stop(self) -> None:
        if self._hook is not None:
            self._hook.failure = KeyboardInterrupt()


class LlamaCpp:
    """A model opened by llama.cpp on its CPU backend. Use as a context manager.

    Parameters
    ----------
    path
        The GGUF file (the first part of a split one).
    threads
        For computing; 1 for the least noise in timings. Results depend on it with flash attention alone.
    log
        File that llama.cpp's chatter is appended to; None drops it.
    vocabulary_only
        Load no weights: enough to tokenise.
    attention
        Options of its contexts.

    Raises
    ------
    CaptureError
        Where llama.cpp is not installed or does not load the file.

    Notes
    -----
    Weights are not repacked (``use_extra_bufts`` off): repacked kernels round in their own ways, and the AMX
    ones of llama-cpp-python 0.3.36 have been seen to crash (SIGSEGV in ``ggml_backend_amx_mul_mat``).
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int = 1,
        log: Path | None = None,
        vocabulary_only: bool = False,
        attention: Attention = PLAIN,
    ) -> None:
        llama = ggml.bindings()
        self.path, self.threads, self.attention = path, threads, attention
        self._stack = contextlib.ExitStack()
        ggml.end_cleanly()
        lines = self._stack.enter_context(chatter(log))
        llama.llama_backend_init()
        params = llama.llama_model_default_params()
        params.n_gpu_layers = 0
        params.use_extra_bufts = False
        params.vocab_only = vocabulary_only
        self._model = llama.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            self._stack.close()
            reason = next((line for line in reversed(lines) if "error" in line), "no reason given")
            raise CaptureError(f"{path}: llama.cpp does not load this file ({reason}): is it a whole model?")
        self._stack.callback(llama.llama_model_free, self._model)
        self._vocab = llama.llama_model_get_vocab(self._model)
        self.n_vocab: int = llama.llama_vocab_n_tokens(self._vocab)
        self.encodes: bool = llama.llama_model_has_encoder(self._model) and llama.llama_model_has_decoder(self._model)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def context(self, positions: int, widest: int, hook: Any) -> Iterator[Context]:  # noqa: ANN401 - see Hook
        """A context for `positions` tokens in all, at most `widest` in one step, with or without an eval callback."""
        llama = ggml.bindings()
        params = llama.llama_context_default_params()
        params.n_ctx = padded(positions)
        params.n_batch = params.n_ubatch = widest
        params.n_threads = params.n_threads_batch = self.threads
        params.flash_attn_type = int(self.attention.flash)  # never "auto", which turns it on
        kinds = (ggml.CACHE_TYPES[kind] for kind in (self.attention.keys, self.attention.values))
        params.type_k, params.type_v = (BY_NAME[kind].id for kind in kinds)
        params.no_perf = True
        callback = None
        if hook is not None:
            callback = llama.ggml_backend_sched_eval_callback(hook)
            params.cb_eval = callback
        pointer = llama.llama_init_from_model(self._model, params)
        if not pointer:
            raise CaptureError(f"{self.path}: llama.cpp makes no context of {positions} positions: not enough memory?")
        try:
            yield Context(pointer, self.n_vocab, hook)
        finally:
            llama.llama_free(pointer)
            del callback  # the C side held it until here

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text, as llama.cpp makes them.

        Parameters
        ----------
        text
            The text.
        special
            Add the tokens that the model wants around a text (BOS, EOS), and read control tokens written in it;
            without, all of it is plain text.
        """
        llama, raw = ggml.bindings(), text.encode()
        size = len(raw) + 16
        while True:
            ids = (llama.llama_token * size)()
            n = llama.llama_tokenize(self._vocab, raw, len(raw), ids, size, special, special)
            if n >= 0:
                return list(ids[:n])
            if -n <= size:
                raise CaptureError(f"{self.path}: llama.cpp does not tokenise this text (code {n})")
            size = -n

    def chat(self, message: str) -> str:
        """The model's own chat template around one user message, ready for the assistant's turn.

        Rendered by llama.cpp's list of known templates: a template from a file is never executed.

        Raises
        ------
        CaptureError
            Where the model has no template, or one that llama.cpp does not know.
        """
        llama = ggml.bindings()
        template = llama.llama_model_chat_template(self._model, None)
        if template is None:
            raise CaptureError(f"{self.path}: the file has no chat template: give the text with --prompt alone")
        messages = (llama.llama_chat_message * 1)(llama.llama_chat_message(b"user", message.encode()))
        size = 4096 + 2 * len(message.encode())
        for _ in range(2):
            buffer = ctypes.create_string_buffer(size)
            n = llama.llama_chat_apply_template(template, messages, 1, True, buffer, size)
            if n < 0:
                raise CaptureError(
                    f"{self.path}: llama.cpp does not know this file's chat template: "
                    "render it yourself and give the text with --prompt alone"
                )
            if n <= size:
                return buffer.raw[:n].decode(errors="replace")
            size = n
        raise CaptureError(f"{self.path}: llama.cpp does not settle on the length of the chat template's text")

    def piece(self, token: int) -> str:
        """The text of one token, control tokens included."""
        llama = ggml.bindings()
        buffer = ctypes.create_string_buffer(256)
        n = llama.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, True)
        return buffer.raw[: max(n, 0)].decode(errors="replace")


def version() -> str:
    """Version of the bindings, which pins llama.cpp's."""
    return f"llama-cpp-python {ggml.bindings().__version__}"
