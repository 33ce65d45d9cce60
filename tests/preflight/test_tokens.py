"""Token ids against llama.cpp's: every usual cause is made on purpose, and named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from builders.models import synthetic
from firstdiff.commands.tokens import tokens_command
from firstdiff.engines.llamacpp import LlamaCpp
from firstdiff.errors import UsageError
from firstdiff.model.synthetic import Llama
from firstdiff.preflight.tokens import TokenCheck, check_tokens, describe

BOS, EOS, NEWLINE, SPACE = 1, 2, 13, 259  # of the synthetic vocabulary, whose bytes are tokens from 3 on
TEXT = "tell me\nmore"
DIGITS = "it's 1,234 stitches, isn't it?\n\n 5"


@pytest.fixture(scope="module")
def spm(llama: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCpp]:
    path = synthetic(tmp_path_factory.mktemp("spm") / "model.gguf", Llama(n_layer=1, n_embd=32, n_ff=32))
    with LlamaCpp(path, vocabulary_only=True) as engine:
        yield engine


@pytest.fixture(scope="module")
def bpe(llama: None, smollm2: Path) -> Iterator[LlamaCpp]:
    with LlamaCpp(smollm2, vocabulary_only=True) as engine:
        yield engine


def causes(check: TokenCheck) -> list[str]:
    return [cause.id for cause in check.causes]


def check(engine: LlamaCpp, ids: list[int], text: str = TEXT, *, chat: bool = False) -> TokenCheck:
    return check_tokens(engine, ids, text, chat=chat, special=True)


def test_equal_ids_agree(spm: LlamaCpp) -> None:
    found = check(spm, spm.tokenize(TEXT))
    assert found.agrees
    assert found.sentence == "agrees"
    assert found.first is None


@pytest.mark.parametrize(
    ("cause", "wrong"),
    [
        ("token-missing-bos", lambda ids: ids[1:]),
        ("token-double-bos", lambda ids: [BOS, *ids]),
        ("token-appended-eos", lambda ids: [*ids, EOS]),
        ("token-space-prefix", lambda ids: [BOS, *ids[2:]]),
        ("token-space-prefix", lambda ids: [BOS, SPACE, *ids[1:]]),
        ("token-whitespace", lambda ids: [SPACE if t == NEWLINE else t for t in ids]),
        ("token-whitespace", lambda ids: [t for t in ids if t != NEWLINE]),
    ],
)
def test_a_usual_cause_is_named(spm: LlamaCpp, cause: str, wrong: Callable[[list[int]], list[int]]) -> None:
    right = spm.tokenize(TEXT)
    assert right[:2] == [BOS, SPACE]
    found = check(spm, wrong(right))
    assert causes(found) == [cause], found.sentence
    assert cause in found.sentence


def test_a_control_token_spelt_as_text_is_named(spm: LlamaCpp) -> None:
    found = check(spm, [BOS, *spm.tokenize("tell me</s>", special=False)], "tell me</s>")
    assert causes(found) == ["token-special-as-text"]


def test_the_case_study_s_two_causes_at_once_are_both_named(spm: LlamaCpp) -> None:
    text = "<|user|>\n1<|assistant|>"
    right = spm.tokenize(text)
    wrong = [*(SPACE if t == NEWLINE else t for t in right), EOS]
    found = check(spm, wrong, text)
    assert causes(found) == ["token-appended-eos", "token-whitespace"]
    first = found.first
    assert first is not None
    assert (first.theirs, first.ours) == (SPACE, NEWLINE)
    assert (first.their_piece, first.our_piece) == (" ", "\n")


def test_an_inserted_end_of_turn_is_another_template_and_shown(spm: LlamaCpp) -> None:
    found = check(spm, spm.tokenize("<|user|>\n1</s>\n<|assistant|>"), "<|user|>\n1<|assistant|>")
    assert causes(found) == ["template"]
    assert r"'</s>\n' is in it" in found.sentence


def test_another_word_is_another_text_and_shown(spm: LlamaCpp) -> None:
    found = check(spm, spm.tokenize("tell me\nless"))
    assert causes(found) == ["text"]
    assert "'less' where 'more' was given" in found.sentence


def test_ids_that_spell_the_same_text_are_said_to_and_still_differ(bpe: LlamaCpp) -> None:
    right = bpe.tokenize("Hello world")
    letters = [bpe.tokenize(c)[0] for c in "Hello"]
    found = check(bpe, [*letters, *right[1:]], "Hello world")
    assert not found.agrees
    assert found.same_text
    assert "spell the same text" in found.sentence


def test_ids_outside_the_vocabulary_are_no_crash(spm: LlamaCpp) -> None:
    found = check(spm, [10**9, -5])
    assert not found.agrees
    assert found.causes == ()
    assert "differs" in found.sentence


@pytest.mark.parametrize(("ids", "words"), [([], "missing"), ([BOS], "token 1 is missing")])
def test_ids_that_end_early_are_said_to(spm: LlamaCpp, ids: list[int], words: str) -> None:
    assert words in check(spm, ids).sentence


def test_a_bos_that_the_model_does_not_want_is_named(bpe: LlamaCpp) -> None:
    found = check(bpe, [1, *bpe.tokenize(DIGITS)], DIGITS)
    assert causes(found) == ["token-added-bos"]


def test_marks_of_a_template_spelt_as_text_are_named(bpe: LlamaCpp) -> None:
    found = check(bpe, bpe.tokenize(bpe.chat("Hi"), special=False), "Hi", chat=True)
    assert causes(found) == ["token-special-as-text"]


def test_a_template_on_one_side_only_is_named(bpe: LlamaCpp) -> None:
    none = check(bpe, bpe.tokenize("Hi"), "Hi", chat=True)
    assert causes(none) == ["template"]
    assert "no chat template" in none.sentence
    own = check(bpe, bpe.tokenize(bpe.chat("Hi")), "Hi")
    assert causes(own) == ["template"]
    assert "given as it is" in own.sentence


def test_another_template_is_named(bpe: LlamaCpp) -> None:
    found = check(bpe, bpe.tokenize("[INST] Hi [/INST]"), "Hi", chat=True)
    assert causes(found) == ["template"]
    assert "'llama2'" in found.sentence


def test_a_system_message_that_only_one_side_has_is_shown(bpe: LlamaCpp) -> None:
    system = "<|im_start|>system\nYou are kind<|im_end|>\n"
    found = check(bpe, bpe.tokenize(system + bpe.chat("Hi")), "Hi", chat=True)
    assert causes(found) == ["template"]
    assert repr(system)[1:15] in found.sentence


def test_another_pre_tokeniser_is_named(bpe: LlamaCpp) -> None:
    from firstdiff.engines.vocabulary import Vocabularies, Vocabulary

    with Vocabularies(Vocabulary.of(bpe)) as vocabularies:
        other = vocabularies.under(frozenset({("tokenizer.ggml.pre", "deepseek-llm")}))
        assert other is not None
        ids = list(other.tokenize(DIGITS, around=True, control=True))
    assert ids != bpe.tokenize(DIGITS)
    found = check(bpe, ids, DIGITS)
    assert causes(found) == ["token-pretokenizer"]


def test_the_description_marks_what_differs_and_says_what_to_do(spm: LlamaCpp) -> None:
    text = describe(check(spm, spm.tokenize(TEXT)[1:]))
    assert "≠" in text
    assert "BOS (1) is missing" in text
    assert "Put the model's BOS token before the first one." in text


def test_the_command_lists_ids_or_compares(spm: LlamaCpp) -> None:
    text, plain, code = tokens_command(model=spm.path, prompt=TEXT)
    assert code == 0
    assert plain["ids"] == spm.tokenize(TEXT)
    assert r"'\n'" in text
    text, plain, code = tokens_command(model=spm.path, prompt=TEXT, ids=plain["ids"][1:])
    assert code == 1
    assert plain["causes"][0]["id"] == "token-missing-bos"
    assert plain["first"]["index"] == 0


def test_a_text_that_is_no_utf_8_is_refused(spm: LlamaCpp) -> None:
    with pytest.raises(UsageError, match="no UTF-8"):
        check(spm, [1], "\udcff")


@pytest.mark.llama
def test_the_vocabulary_of_a_path_need_not_be_ascii(tmp_path: Path) -> None:
    path = synthetic(tmp_path / "modèle.gguf", Llama(n_layer=1, n_embd=32, n_ff=32))
    with LlamaCpp(path, vocabulary_only=True) as engine:
        assert causes(check(engine, [BOS, *engine.tokenize(TEXT)[2:]])) == ["token-space-prefix"]
