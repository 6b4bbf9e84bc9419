"""Tokenizers: text there and back, files, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastformer.data.tokenizers import (
    BPETokenizer,
    ByteTokenizer,
    CharacterTokenizer,
    WordTokenizer,
    new_tokenizer,
    read_tokenizer,
)
from fastformer.errors import FastformerError, InvalidTypeError, InvalidValueError

TEXTS = ["to be, or not", "naïve 文字 \U0001f40d\n"]
PLACE = Path("tokenizer.json")


@given(st.text(min_size=1))
def test_characters_there_and_back(text):
    tokenizer = CharacterTokenizer.of([text])
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int64 and len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.vocab_size == len(set(text))
    assert list(tokenizer.characters) == sorted(set(text))


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_bytes_there_and_back(text):
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert ids.tolist() == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_half_a_character_s_bytes_are_shown_as_such():
    assert ByteTokenizer().decode([195]) == "\ufffd"


@pytest.mark.parametrize("kind", ["characters", "bytes", "words"])
def test_a_file_gives_the_same_tokenizer(kind):
    tokenizer = new_tokenizer(kind, TEXTS, 99)
    other = read_tokenizer(PLACE, tokenizer.file())
    assert (other.kind, other.vocab_size) == (kind, tokenizer.vocab_size)
    assert other == tokenizer and hash(other) == hash(tokenizer)
    assert tokenizer != new_tokenizer("words", ["others"], 9) and tokenizer != tokenizer.file()
    assert other.encode(TEXTS[1]).tolist() == tokenizer.encode(TEXTS[1]).tolist()


def test_the_most_frequent_words_are_known_and_others_are_not():
    tokenizer = WordTokenizer.of(["the cat, the dog,", "the end \u00fcber"], 4)
    assert tokenizer.words == ("the", ",", "cat")
    ids = tokenizer.encode("the bird, the\ncat!")
    assert ids.dtype == np.int64 and ids.tolist() == [1, 0, 2, 1, 3, 0]
    assert tokenizer.decode(ids) == "the [UNK] , the cat [UNK]"
    assert tokenizer.encode("  \n").size == 0
    assert [tokenizer.token(i) for i in range(4)] == ["[UNK]", "the", ",", "cat"]
    assert WordTokenizer.of(["\u00fcber-all"], 99).words == ("-", "all", "\u00fcber")
    with pytest.raises(InvalidValueError, match="vocab_size must be an integer >= 2"):
        WordTokenizer.of(TEXTS, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("abc", "words must be a list"), (None, "words must be a list"),
        (["a", "a"], "each word once, got 'a' again"), (["two words"], "word or sign, got 'two"),
        ([""], "one word or sign"), ([3], "one word or sign, got 3"),
    ],
)  # fmt: skip
def test_words_are_checked(words, message):
    with pytest.raises(FastformerError, match=message):
        WordTokenizer(words)


def test_every_id_has_a_token_to_show():
    assert CharacterTokenizer("ab\u00e9").token(2) == "\u00e9"
    shown = [ByteTokenizer().token(i) for i in (0x41, 0x20, 0x0A, 0xC3)]
    assert shown == ["A", " ", "<0x0A>", "<0xC3>"]
    for tokenizer in (CharacterTokenizer("ab"), ByteTokenizer(), WordTokenizer(["a"])):
        most = tokenizer.vocab_size - 1
        with pytest.raises(InvalidValueError, match=f"an integer from 0 to {most}"):
            tokenizer.token(tokenizer.vocab_size)
        with pytest.raises(FastformerError, match="an integer from 0"):
            tokenizer.token(-1)


def test_a_character_that_was_never_seen_is_named():
    tokenizer = CharacterTokenizer("abc")
    with pytest.raises(
        InvalidValueError, match="never seen the character 'Z', at place 3 .* 'abc'"
    ):
        tokenizer.encode("abZ")
    with pytest.raises(InvalidValueError, match="never seen"):
        tokenizer.encode("\U0010ffff")
    assert tokenizer.encode("").size == 0


@pytest.mark.parametrize(
    "tokenizer", [CharacterTokenizer("ab"), ByteTokenizer(), WordTokenizer(["ab", "c"])]
)
def test_ids_and_texts_are_checked(tokenizer):
    with pytest.raises(InvalidValueError, match=f"ids must be below {tokenizer.vocab_size}"):
        tokenizer.decode([tokenizer.vocab_size])
    with pytest.raises(InvalidValueError, match="ids must be >= 0"):
        tokenizer.decode([-1])
    with pytest.raises(InvalidTypeError, match="text must be a string, got bytes"):
        tokenizer.encode(b"a")


@pytest.mark.parametrize("characters", ["", "aa", None, 3])
def test_characters_are_checked(characters):
    with pytest.raises(FastformerError, match="characters must be"):
        CharacterTokenizer(characters)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"{}", b"\xff", b'{"format": "fastformer tokenizer"}',
        b'{"format": "fastformer tokenizer", "kind": "characters"}',
        b'{"format": "fastformer tokenizer", "kind": "characters", "characters": "aa"}',
        b'{"format": "fastformer tokenizer", "kind": "words"}',
        b'{"format": "fastformer tokenizer", "kind": "words", "words": [[]]}',
        b'{"format": "fastformer tokenizer", "kind": "bpe"}',
    ],
)  # fmt: skip
def test_a_file_that_holds_none_is_refused(content):
    with pytest.raises(InvalidValueError, match=r"tokenizer\.json does not hold a tokenizer"):
        read_tokenizer(PLACE, content)


def test_bpe_there_and_back():
    tokenizer = BPETokenizer.train([TEXTS[0] * 50], 300)
    assert 256 < tokenizer.vocab_size <= 300
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        other = read_tokenizer(PLACE, tokenizer.file())
        assert other.encode(text).tolist() == ids.tolist()
    assert len(tokenizer.encode(TEXTS[0])) < len(TEXTS[0])
    assert tokenizer.token(int(tokenizer.encode(" ")[0])) == "\u0120", "as the library shows it"
    with pytest.raises(InvalidValueError, match="ids must be below"):
        tokenizer.decode([tokenizer.vocab_size])
    with pytest.raises(InvalidValueError, match="vocab_size must be an integer >= 256"):
        BPETokenizer.train(TEXTS, 100)
