"""A model's vocabulary in llama.cpp, and the same vocabulary opened wrongly on purpose.

llama.cpp lets a key of the file be overridden while it is loaded (``llama_model_kv_override``), so a tokenisation
with another pre-tokeniser or without the space prefix is executed, not imitated.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Self

from firstdiff.engines import ggml
from firstdiff.engines.llamacpp import LlamaCpp
from firstdiff.errors import CaptureError

Override = tuple[str, str | bool]
"""A key of the file, and the value to read in its place."""

SPM, BPE = 1, 2  # enum llama_vocab_type


class Vocabulary:
    """A vocabulary that llama.cpp holds open.

    Parameters
    ----------
    pointer
        ``llama_vocab *``; whoever opened the model keeps it open.
    path
        The file, for messages.
    """

    def __init__(self, pointer: Any, path: Path) -> None:  # noqa: ANN401 - an opaque pointer
        llama = ggml.bindings()
        self._pointer, self.path = pointer, path
        self.size: int = llama.llama_vocab_n_tokens(pointer)
        self.kind: int = llama.llama_vocab_type(pointer)
        self.bos: int = llama.llama_vocab_bos(pointer)
        self.eos: int = llama.llama_vocab_eos(pointer)
        self.adds_bos: bool = llama.llama_vocab_get_add_bos(pointer)
        self.adds_eos: bool = llama.llama_vocab_get_add_eos(pointer)

    @classmethod
    def of(cls, engine: LlamaCpp) -> Vocabulary:
        """The vocabulary of an open model."""
        return cls(engine._vocab, engine.path)  # noqa: SLF001 - llama.cpp's handle has no other door

    def tokenize(self, text: str, *, around: bool, control: bool) -> tuple[int, ...]:
        """Token ids of a text (``llama_tokenize``).

        Parameters
        ----------
        text
            The text.
        around
            Add the tokens that the model wants around a text, BOS and EOS.
        control
            Read control tokens that are written in the text; without, they are spelt as text.
        """
        llama, raw = ggml.bindings(), text.encode()
        size = len(raw) + 16
        for _ in range(2):
            ids = (llama.llama_token * size)()
            n = llama.llama_tokenize(self._pointer, raw, len(raw), ids, size, around, control)
            if n >= 0:
                return tuple(ids[:n])
            size = -n
        raise CaptureError(f"{self.path}: llama.cpp does not tokenise this text (code {n})")

    def raw_piece(self, token: int) -> bytes:
        """The bytes of one token, control tokens included; none for an id outside the vocabulary."""
        if not 0 <= token < self.size:  # llama.cpp ends the process over it
            return b""
        llama, size = ggml.bindings(), 64
        for _ in range(2):
            buffer = ctypes.create_string_buffer(size)
            n = llama.llama_token_to_piece(self._pointer, token, buffer, size, 0, True)
            if n >= 0:
                return buffer.raw[:n]
            size = -n
        return b""

    def piece(self, token: int) -> str:
        """The text of one token; bytes that are not UTF-8 by themselves become U+FFFD."""
        return self.raw_piece(token).decode(errors="replace")

    def text(self, ids: Sequence[int]) -> str:
        """The text that tokens spell, control tokens included."""
        return b"".join(map(self.raw_piece, ids)).decode(errors="replace")

    def token(self, text: str) -> int | None:
        """The one token that a text is; None where it takes several."""
        ids = self.tokenize(text, around=False, control=False)
        return ids[0] if len(ids) == 1 else None

    def is_control(self, token: int) -> bool:
        """Whether a token is a control token, such as BOS or a mark of a chat template."""
        return 0 <= token < self.size and bool(ggml.bindings().llama_vocab_is_control(self._pointer, token))


class Vocabularies:
    """One file's vocabulary under different overrides, each opened once. Use as a context manager."""

    def __init__(self, plain: Vocabulary) -> None:
        self.plain = plain
        self._opened: dict[frozenset[Override], Vocabulary | None] = {frozenset(): plain}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def under(self, overrides: frozenset[Override]) -> Vocabulary | None:
        """The vocabulary with some keys overridden; None where llama.cpp does not load it that way."""
        if overrides not in self._opened:
            try:
                vocabulary = self._stack.enter_context(_overridden(self.plain.path, overrides))
            except CaptureError:
                vocabulary = None
            self._opened[overrides] = vocabulary
        return self._opened[overrides]


@contextlib.contextmanager
def _overridden(path: Path, overrides: frozenset[Override]) -> Iterator[Vocabulary]:
    """Load a file's vocabulary with some of its keys read otherwise."""
    llama = ggml.bindings()
    table = (llama.llama_model_kv_override * (len(overrides) + 1))()  # an empty key ends it
    for entry, (key, value) in zip(table, sorted(overrides, key=lambda o: o[0]), strict=False):
        entry.key = key.encode()
        if isinstance(value, bool):
            entry.tag, entry.value.val_bool = llama.LLAMA_KV_OVERRIDE_TYPE_BOOL, value
        else:
            entry.tag, entry.value.val_str = llama.LLAMA_KV_OVERRIDE_TYPE_STR, value.encode()
    params = llama.llama_model_default_params()
    params.vocab_only, params.n_gpu_layers = True, 0
    params.kv_overrides = ctypes.cast(table, ctypes.POINTER(llama.llama_model_kv_override))
    model = llama.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise CaptureError(f"{path}: llama.cpp does not load this vocabulary with {sorted(overrides)}")
    try:
        yield Vocabulary(llama.llama_model_get_vocab(model), path)
    finally:
        llama.llama_model_free(model)


@cache
def builtin_templates() -> tuple[str, ...]:
    """Names of the chat templates that llama.cpp knows (``llama_chat_builtin_templates``)."""
    llama = ggml.bindings()
    count = llama.llama_chat_builtin_templates(None, 0)
    names = (ctypes.c_char_p * count)()
    llama.llama_chat_builtin_templates(names, count)
    return tuple(name.decode() for name in names if name)


def rendered(template: str, message: str, *, answer: bool = True) -> str | None:
    """A message in one of llama.cpp's templates; `answer` opens the assistant's turn. None where that fails."""
    llama, raw = ggml.bindings(), message.encode()
    messages = (llama.llama_chat_message * 1)(llama.llama_chat_message(b"user", raw))
    size = 4096 + 2 * len(raw)
    buffer = ctypes.create_string_buffer(size)
    n = llama.llama_chat_apply_template(template.encode(), messages, 1, answer, buffer, size)
    return buffer.raw[:n].decode(errors="replace") if 0 <= n <= size else None
