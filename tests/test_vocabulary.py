"""The vocabulary: the ids are fixed, for trained weights depend on them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fastformer.data.vocabulary import DIGIT_TOKENS, EOS, PAD, decode, encode
from fastformer.errors import InvalidTypeError, InvalidValueError

IDS = {
    "[PAD]": 0,
    "[EOS]": 1,
    "0": 2,
    "1": 3,
    "2": 4,
    "3": 5,
    "4": 6,
    "5": 7,
    "6": 8,
    "7": 9,
    "8": 10,
    "9": 11,
    "First": 12,
    "Second": 13,
    "Last": 14,
    "Max": 15,
    "Min": 16,
    "(": 17,
    ")": 18,
    ",": 19,
}


@pytest.mark.smoke
def test_every_token_has_its_id() -> None:
    assert {token: index for index, token in enumerate(DIGIT_TOKENS)} == IDS
    assert encode(IDS) == list(IDS.values())
    assert decode(IDS.values()) == list(IDS)
    assert (PAD, EOS) == (0, 1)


def test_known_sequence() -> None:
    tokens = ["Max", "(", "5", ",", "3", ",", "9", ")"]
    assert encode(tokens) == [15, 17, 7, 19, 5, 19, 11, 18]


@given(st.lists(st.sampled_from(DIGIT_TOKENS)))
def test_decode_undoes_encode(tokens: list[str]) -> None:
    assert decode(encode(tokens)) == tokens


@given(st.lists(st.integers(0, 19)), st.sampled_from([np.int32, np.int64, np.uint8]))
def test_numpy_ids_decode_as_python_ids_do(ids: list[int], dtype: type) -> None:
    array: NDArray[np.integer] = np.array(ids, dtype=dtype)
    assert decode(array) == decode(ids) == decode(list(array))
    assert all(type(index) is int for index in encode(decode(array)))


@given(st.text().filter(lambda token: token not in IDS))
def test_no_other_token_is_known(token: str) -> None:
    with pytest.raises(InvalidValueError, match=r"^unknown token .* at position 1; "):
        encode(["Max", token])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["max"], r"^unknown token 'max' at position 0; did you mean 'Max'\?$"),
        (["Max", "(", "12"], r"^unknown token '12' at position 2; "),
        (["Max", "?"], r"^unknown token '\?' at position 1; known: \[PAD\] .* Max Min \( \) ,$"),
    ],
)
def test_unknown_token_is_named(tokens: list[str], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        encode(tokens)


def test_long_unknown_token_is_cut_in_the_message() -> None:
    with pytest.raises(InvalidValueError) as caught:
        encode(["x" * 100_000])
    assert len(str(caught.value)) < 300


def test_a_string_is_not_a_list_of_tokens() -> None:
    with pytest.raises(InvalidTypeError, match=r"got the string 'Max \( 5 \)'; use parse_expr"):
        encode("Max ( 5 )")
    with pytest.raises(InvalidTypeError, match=r"^token at position 1 must be a string, got 5; "):
        encode(["Max", 5])  # type: ignore[list-item]


@pytest.mark.parametrize("index", [-1, 20, np.int64(20), np.int8(-1), 2**70])
def test_id_outside_the_vocabulary(index: int) -> None:
    given = "one of 71 bits" if index == 2**70 else rf".*{index}\)?"
    message = rf"^id at position 2 must be an integer from 0 to 19, got {given}$"
    with pytest.raises(InvalidValueError, match=message):
        decode([0, 1, index])


@pytest.mark.parametrize("index", [1.0, np.float32(1), "1", True, None])
def test_id_that_is_not_an_integer(index: object) -> None:
    with pytest.raises(InvalidTypeError, match="^id at position 0 must be an integer from 0 to 19"):
        decode([index])  # type: ignore[list-item]


@pytest.mark.parametrize("ids", [5, np.int64(5), np.array(5), np.zeros((2, 2), np.int64)])
def test_ids_must_be_a_list(ids: object) -> None:
    with pytest.raises(InvalidTypeError, match="^ids must be a list or a 1-D array of ids, got"):
        decode(ids)  # type: ignore[arg-type]
