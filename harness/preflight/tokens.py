"""Token ids: a candidate's against llama.cpp's for the same text, and the cause of a difference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

from firstdiff.engines.llamacpp import LlamaCpp
from firstdiff.engines.vocabulary import SPM, Vocabularies, Vocabulary
from firstdiff.errors import UsageError
from firstdiff.preflight.token_causes import Change, Ids, Subject, Way, pre_tokenizers, small, templates

LONG = 1 << 13
"""Characters of a text from which templates are tried alone: together with another cause they take 2,000 runs."""

SHOWN = 40  # characters of a differing text that a sentence quotes


@dataclass(frozen=True, slots=True)
class Cause:
    """What went wrong: its id, one phrase, and what to do."""

    id: str
    says: str
    fix: str


@dataclass(frozen=True, slots=True)
class Difference:
    """The first token that differs; None stands for the end of the tokens."""

    index: int
    theirs: int | None
    ours: int | None
    their_piece: str
    our_piece: str


@dataclass(frozen=True, slots=True)
class TokenCheck:
    """A candidate's ids (`theirs`) against llama.cpp's (`ours`).

    Parameters
    ----------
    theirs, ours
        Token ids.
    their_pieces, our_pieces
        Their texts.
    causes
        What together gives exactly their ids, when done with llama.cpp; empty where nothing tried does.
    same_text
        Whether both spell the same text.
    """

    theirs: Ids
    ours: Ids
    their_pieces: tuple[str, ...]
    our_pieces: tuple[str, ...]
    causes: tuple[Cause, ...] = ()
    same_text: bool = True

    @property
    def agrees(self) -> bool:
        """Whether the ids are equal; that the text is does not do."""
        return self.theirs == self.ours

    @property
    def first(self) -> Difference | None:
        """The first token that differs."""
        if self.agrees:
            return None
        pairs = enumerate(zip(self.theirs, self.ours, strict=False))
        index = next((i for i, (a, b) in pairs if a != b), min(len(self.theirs), len(self.ours)))
        theirs, their_piece = _at(self.theirs, self.their_pieces, index)
        ours, our_piece = _at(self.ours, self.our_pieces, index)
        return Difference(index, theirs, ours, their_piece, our_piece)

    @property
    def sentence(self) -> str:
        """What a report says: ``agrees``, or the first difference with its cause."""
        first = self.first
        if first is None:
            return "agrees"
        theirs = "missing" if first.theirs is None else f"{first.theirs} {first.their_piece!r}"
        ours = "'s tokens end" if first.ours is None else f" has {first.ours} {first.our_piece!r}"
        where = f"token {first.index} is {theirs} where llama.cpp{ours}"
        if self.causes:
            return f"{where}: " + ", and ".join(f"{cause.says} ({cause.id})" for cause in self.causes)
        return f"{where}: " + (
            "the ids spell the same text, but the model knows other ids for it"
            if self.same_text
            else "differs, for no cause that was tried"
        )

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        first = self.first
        return {
            "agrees": self.agrees,
            "says": self.sentence,
            "first": first and {name: getattr(first, name) for name in Difference.__slots__},
            "causes": [{"id": c.id, "says": c.says, "fix": c.fix} for c in self.causes],
            "same_text": self.same_text,
            "candidate": {"ids": list(self.theirs), "pieces": list(self.their_pieces)},
            "llama.cpp": {"ids": list(self.ours), "pieces": list(self.our_pieces)},
        }


def check_tokens(engine: LlamaCpp, theirs: Sequence[int], text: str, *, chat: bool, special: bool) -> TokenCheck:
    """Compare a candidate's token ids with llama.cpp's for the same text.

    Parameters
    ----------
    engine
        The model, open in llama.cpp; its vocabulary is enough.
    theirs
        The candidate's ids of the whole prompt.
    text
        The text, before the chat template.
    chat
        Put the text into the model's chat template.
    special
        Add BOS and EOS as the model wants, and read control tokens written in the text.

    Raises
    ------
    CaptureError
        Where llama.cpp does not tokenise the text, or does not know the template.
    UsageError
        For a text that is no UTF-8.
    """
    theirs = tuple(theirs)
    right = Way(engine.chat(checked(text)) if chat else checked(text), special, special)
    with Vocabularies(Vocabulary.of(engine)) as vocabularies:
        plain = vocabularies.plain
        ours = right.ids(vocabularies)
        assert ours is not None
        causes: tuple[Cause, ...] = ()
        if ours != theirs:
            causes = _causes(Subject(engine, vocabularies, text, chat, right), theirs)
        return TokenCheck(
            theirs,
            ours,
            tuple(map(plain.piece, theirs)),
            tuple(map(plain.piece, ours)),
            causes,
            _spelt(plain, ours) == _spelt(plain, theirs),
        )


def _causes(subject: Subject, theirs: Ids) -> tuple[Cause, ...]:
    """The first change, or the first two together, that lead to their ids."""
    for changes in _attempts(subject, theirs):
        way = subject.right
        for change in changes:
            way = change.make(way)
        if way.ids(subject.vocabularies) == theirs:
            return tuple(Cause(c.id, c.says, c.fix) for c in changes)
    return ()


def _attempts(subject: Subject, theirs: Ids) -> Iterator[tuple[Change, ...]]:
    """Changes to try, the simplest first: one, two, and at last another text altogether."""
    ones, others = tuple(small(subject)), tuple(templates(subject))
    yield from ((one,) for one in (*ones, *others))
    splits = []
    for split in pre_tokenizers(subject):
        yield (split,)
        if split.make(subject.right).ids(subject.vocabularies) != subject.right.ids(subject.vocabularies):
            splits.append(split)
    yield from (pair for pair in combinations((*ones, *splits), 2) if pair[0].id != pair[1].id)
    if len(subject.right.text) < LONG:
        yield from product(others, ones)
    texts = tuple(_other_texts(subject, theirs))
    yield from ((text,) for text in texts)
    yield from product(texts, ones)


def _other_texts(subject: Subject, theirs: Ids) -> Iterator[Change]:
    """Their ids may be llama.cpp's own for the text that they spell, which is then not the text that was given."""
    plain = subject.vocabularies.plain
    right = subject.right.text
    for text in dict.fromkeys((_spelt(plain, theirs), _spelt(plain, theirs, prefix=False))):
        if text == right:
            continue
        start, new, old = _changed(text, right)
        marks = any(
            plain.is_control(t) for part in (new, old) for t in plain.tokenize(part, around=False, control=True)
        )
        at = f"at character {start}"
        says = f"it has {_quoted(new)} where {_quoted(old)} was given" if old else f"{_quoted(new)} is in it"
        says = says if new else f"{_quoted(old)} is not in it"
        yield Change(
            "template" if subject.chat or marks else "text",
            f"another text is tokenised: {at} {says}",
            "render 'tokenizer.chat_template' of the file" if subject.chat else "give both engines the same text",
            lambda way, text=text: Way(text, way.around, way.control),  # type: ignore[misc]
        )


def _changed(a: str, b: str) -> tuple[int, str, str]:
    """Where two texts differ first, and what stands there in each; marks such as ``<|user|>`` are kept whole."""
    least = min(len(a), len(b))
    start = next((i for i in range(least) if a[i] != b[i]), least)
    stop = next((i for i in range(least - start) if a[-1 - i] != b[-1 - i]), least - start)
    longer, size = (a, len(a) - len(b)) if len(a) > len(b) else (b, len(b) - len(a))
    if start + stop == least:  # an insertion: where it can slide, it is shown from its mark on
        slides = (
            i
            for i in range(start, -1, -1)
            if longer[i : i + size][:1] in "<[" and longer[i:start] == longer[i + size : start + size]
        )
        start = next(slides, start)
        stop = least - start
    else:
        while start and a[start - 1] in "<[|":
            start -= 1
        while stop and a[len(a) - stop] in ">]|":
            stop -= 1
    return start, a[start : len(a) - stop], b[start : len(b) - stop]


def _spelt(vocabulary: Vocabulary, ids: Ids, *, prefix: bool = True) -> str:
    """The text that ids spell, without BOS and (`prefix`) without the spaces that SentencePiece adds."""
    if vocabulary.adds_bos and ids[:1] == (vocabulary.bos,):
        ids = ids[1:]
    if vocabulary.adds_eos and ids[-1:] == (vocabulary.eos,):
        ids = ids[:-1]
    raw, begins = b"", prefix and vocabulary.kind == SPM
    for token in ids:
        piece = vocabulary.raw_piece(token)
        raw += piece.removeprefix(b" ") if begins else piece
        begins = prefix and vocabulary.kind == SPM and vocabulary.is_control(token)
    return raw.decode(errors="replace")


def _at(ids: Ids, pieces: Sequence[str], index: int) -> tuple[int | None, str]:
    return (ids[index], pieces[index]) if index < len(ids) else (None, "")


def _quoted(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[: SHOWN // 2]}…{text[-SHOWN // 2 :]}")


def checked(text: str) -> str:
    """Refuse a text that is no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise UsageError(f"--prompt: character {e.start} of the text is no UTF-8: give it in UTF-8") from None
    return text


def describe(check: TokenCheck) -> str:
    """The ids side by side with their pieces where they differ, and what to do."""
    if check.agrees:
        return f"{listed(check.ours, check.our_pieces)}\n\nThe ids agree with llama.cpp's ({len(check.ours)} tokens)."
    first = check.first
    assert first is not None
    window = range(max(0, first.index - 3), first.index + 5)
    rows = [
        (i, _at(check.theirs, check.their_pieces, i), _at(check.ours, check.our_pieces, i))
        for i in window
        if i < max(len(check.theirs), len(check.ours))
    ]
    lines = [f"{'':>5}  {'candidate':28}  llama.cpp"]
    for i, theirs, ours in rows:
        mark = " " if theirs[0] == ours[0] else "≠"
        lines.append(f"{i:5}  {_cell(*theirs):28}{mark} {_cell(*ours)}".rstrip())
    lines += ["", check.sentence[:1].upper() + check.sentence[1:] + "."]
    lines += [f"  {cause.fix[:1].upper()}{cause.fix[1:]}." for cause in check.causes]
    return "\n".join(lines)


def _cell(token: int | None, piece: str) -> str:
    return "–" if token is None else f"{token:>7} {piece!r}"


def listed(ids: Ids, pieces: Iterable[str]) -> str:
    """Each token with its piece, a line each."""
    return "\n".join(f"{i:5}  {_cell(token, piece)}" for i, (token, piece) in enumerate(zip(ids, pieces, strict=True)))
