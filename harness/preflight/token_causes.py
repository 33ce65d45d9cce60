"""Why token ids differ: each usual cause is executed with llama.cpp, and names itself by giving the same ids.

What can be wrong on the way from a text to ids is changed there: the template, the text, the vocabulary's keys, or the
ids themselves. Changes of different places can be made together, so two causes at once are found as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from firstdiff.engines.llamacpp import LlamaCpp
from firstdiff.engines.vocabulary import BPE, SPM, Override, Vocabularies, builtin_templates, rendered
from firstdiff.errors import CaptureError

Ids = tuple[int, ...]

NO_PREFIX: frozenset[Override] = frozenset({("tokenizer.ggml.add_space_prefix", False)})

PRE_TOKENIZERS = (
    "default", "gpt-2", "llama-bpe", "qwen2", "smollm", "tekken", "gpt-4o", "deepseek-llm", "deepseek-coder",
    "deepseek-v3", "falcon", "starcoder", "bloom", "poro-chat", "chatglm-bpe", "viking", "superbpe",
)  # fmt: skip
"""One name of every way in which llama.cpp splits a text before BPE (``llama_vocab_pre_type``) that is in use."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way from a text to ids.

    `spell` changes the text, `edit` the ids, in order; for `around` and `control` see
    :meth:`firstdiff.engines.vocabulary.Vocabulary.tokenize`.
    """

    text: str
    around: bool
    control: bool
    overrides: frozenset[Override] = frozenset()
    spell: tuple[Callable[[str], str], ...] = ()
    edit: tuple[Callable[[Ids], Ids], ...] = ()

    def ids(self, vocabularies: Vocabularies) -> Ids | None:
        """The ids that this way leads to; None where llama.cpp cannot go it."""
        vocabulary = vocabularies.under(self.overrides)
        if vocabulary is None:
            return None
        text = self.text
        for spell in self.spell:
            text = spell(text)
        ids = vocabulary.tokenize(text, around=self.around, control=self.control)
        for edit in self.edit:
            ids = edit(ids)
        return ids


@dataclass(frozen=True, slots=True)
class Subject:
    """What is tokenised: the user's `message`, its `right` way, and the vocabulary, open in llama.cpp."""

    engine: LlamaCpp
    vocabularies: Vocabularies
    message: str
    chat: bool
    right: Way

    def template(self) -> str | None:
        """The message in the model's own template; None where there is none."""
        try:
            return self.engine.chat(self.message)
        except CaptureError:
            return None

    def spaceless(self) -> frozenset[Override]:
        """Overrides under which a text gets no space in front."""
        return NO_PREFIX if self.vocabularies.plain.kind == SPM else frozenset()


@dataclass(frozen=True, slots=True)
class Change:
    """One wrong turn: what it is called, in one sentence, what to do, and the way gone wrong."""

    id: str
    says: str
    fix: str
    make: Callable[[Way], Way]


def small(subject: Subject) -> Iterator[Change]:
    """Wrong turns of the tokeniser, the likeliest first."""
    yield from _around(subject)
    yield from _control(subject)
    yield from _space_prefix(subject)
    yield from _white_space(subject)


def _around(subject: Subject) -> Iterator[Change]:
    plain = subject.vocabularies.plain
    bos, eos = (plain.bos,), (plain.eos,)
    if plain.bos >= 0:
        yield Change(
            "token-missing-bos",
            f"BOS ({plain.bos}) is missing in front",
            "put the model's BOS token before the first one",
            _edited(lambda ids: ids[1:] if ids[:1] == bos else ids),
        )
        yield Change(
            "token-double-bos",
            f"BOS ({plain.bos}) is there twice",
            "add BOS in the template or in the tokeniser, not in both",
            _edited(lambda ids: bos + ids if ids[:1] == bos else ids),
        )
        yield Change(
            "token-added-bos",
            f"BOS ({plain.bos}) is put in front, which this model does not ask for",
            "follow 'tokenizer.ggml.add_bos_token' of the file",
            _edited(lambda ids: ids if ids[:1] == bos else bos + ids),
        )
    if plain.eos >= 0:
        yield Change(
            "token-appended-eos",
            f"EOS ({plain.eos}) is appended",
            "do not end a prompt with EOS: the model takes the text for finished",
            _edited(lambda ids: ids + eos),
        )


def _control(subject: Subject) -> Iterator[Change]:
    plain = subject.vocabularies.plain
    fix = "read control tokens as single ids before the text is split into pieces"
    yield Change(
        "token-special-as-text", "control tokens are spelt as text", fix, lambda way: replace(way, control=False)
    )
    if plain.bos >= 0:
        yield Change(
            "token-special-as-text",
            "BOS is spelt as text",
            fix,
            lambda way: replace(
                way, control=False, around=False, spell=(*way.spell, lambda text: plain.piece(plain.bos) + text)
            ),
        )


def _space_prefix(subject: Subject) -> Iterator[Change]:
    def doubled(way: Way) -> Way:
        return replace(way, spell=(*way.spell, lambda text: " " + text))

    def missing(way: Way) -> Way:
        return replace(way, overrides=way.overrides | NO_PREFIX)

    if subject.vocabularies.plain.kind == SPM:
        fix = "follow 'tokenizer.ggml.add_space_prefix' of the file: one space before a text"
        where = "the space that SentencePiece puts before a text is missing"
        yield Change("token-space-prefix", where, fix, missing)
        yield Change("token-space-prefix", f"{where} after control tokens", fix, lambda way: missing(doubled(way)))
        yield Change("token-space-prefix", "the space that SentencePiece puts before a text is doubled", fix, doubled)
    else:
        yield Change(
            "token-space-prefix",
            "a space is put before the text, which this vocabulary does not ask for",
            "give the text to the tokeniser as it is",
            doubled,
        )


def _white_space(subject: Subject) -> Iterator[Change]:
    fix = "map the space alone (U+0020): a newline and a tab are tokens of their own"
    says = "every white-space character is made a space, so a newline becomes one"
    yield Change("token-whitespace", says, fix, _spelt(lambda text: re.sub(r"\s", " ", text)))
    bare = subject.vocabularies.under(subject.spaceless()) or subject.vocabularies.plain
    space, newline = bare.token(" "), bare.token("\n")
    if space is not None and newline is not None:
        says = f"the newline's token ({newline}) is replaced by the space's ({space})"
        yield Change(
            "token-whitespace", says, fix, _edited(lambda ids: tuple(space if t == newline else t for t in ids))
        )
    fix = "keep white space as it is given"
    yield Change("token-whitespace", "newlines are dropped", fix, _spelt(lambda text: text.replace("\n", "")))
    says = "white space at the ends of the text is stripped"
    yield Change("token-whitespace", says, fix, _spelt(str.strip))


def pre_tokenizers(subject: Subject) -> Iterator[Change]:
    """Other ways of splitting a text before BPE. Each opens the vocabulary once more, some 0.1 s."""
    plain = subject.vocabularies.plain
    if plain.kind != BPE:
        return
    bos = ("tokenizer.ggml.add_bos_token", plain.adds_bos)  # some names bring a BOS with them
    for name in PRE_TOKENIZERS:
        overrides = frozenset({("tokenizer.ggml.pre", name), bos})
        yield Change(
            "token-pretokenizer",
            f"the text is split by another pre-tokeniser, as '{name}' does",
            "take the regular expression that 'tokenizer.ggml.pre' of the file names",
            lambda way, overrides=overrides: replace(way, overrides=way.overrides | overrides),  # type: ignore[misc]
        )


def templates(subject: Subject) -> Iterator[Change]:
    """Other templates, or one applied on one side only."""
    own = subject.template()
    if subject.chat:
        yield _text("no chat template is applied", "apply the model's own template", subject.message)
    elif own is not None:
        fix = "give firstdiff --chat, or your engine the text as it is"
        yield _text("the model's chat template is applied to a text that was given as it is", fix, own)
    seen = {subject.message, own}
    for name in builtin_templates():
        for answer in (True, False):
            text = rendered(name, subject.message, answer=answer)
            if text is None or text in seen:
                continue
            seen.add(text)
            opening = "" if answer else ", without the opening of the assistant's turn"
            fix = "render 'tokenizer.chat_template' of the file"
            yield _text(f"the text is in another chat template, llama.cpp's '{name}'{opening}", fix, text)


def _text(says: str, fix: str, text: str) -> Change:
    return Change("template", says, fix, lambda way: replace(way, text=text))


def _edited(edit: Callable[[Ids], Ids]) -> Callable[[Way], Way]:
    return lambda way: replace(way, edit=(*way.edit, edit))


def _spelt(spell: Callable[[str], str]) -> Callable[[Way], Way]:
    return lambda way: replace(way, spell=(*way.spell, spell))
