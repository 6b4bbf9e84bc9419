"""Tokens on disk: the same as of the whole text, made once, gone on with, and what is refused."""

import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import same_bits

from fastformer.data import text_files
from fastformer.data.text import TextTask
from fastformer.data.text_files import check_files, cut, files_digest, parts, text_pieces
from fastformer.data.tokenizers import (
    BPETokenizer,
    ByteTokenizer,
    CharacterTokenizer,
    WordTokenizer,
)
from fastformer.errors import InvalidValueError
from fastformer.training import token_file
from fastformer.training.token_file import open_tokens

TEXT = (
    "The quick brown fox\njumps over\r\n\nthe lazy d\u00f6g.\n\u6587\u5b57 \U0001f40d and more\n"
    * 9
)
TOKENIZERS = {
    "characters": CharacterTokenizer.of([TEXT, "<|>"]),
    "bytes": ByteTokenizer(),
    "words": WordTokenizer.of([TEXT], 12),
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    place = tmp_path / "cache"
    monkeypatch.setattr(token_file, "cache_directory", lambda: place)
    monkeypatch.setattr(text_files, "PIECE", 64)
    monkeypatch.setattr(token_file, "_SECONDS_BETWEEN_SAVES", -1)
    return place


def task_of(tmp_path, *texts, **options):
    paths = [tmp_path / f"{number}.txt" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    files = tuple(map(str, paths))
    return TextTask(files=files, digest=files_digest(paths), **options)


@given(
    st.text(st.sampled_from("ab \n\r\u00e9\U0001f40d|"), min_size=1),
    st.sampled_from(["", "|", "\n\n"]),
)
def test_pieces_are_the_text_and_may_begin_anywhere(tmp_path_factory, text, separator):
    path = tmp_path_factory.mktemp("text") / "t"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "PIECE", 11)
        found = list(text_pieces(path, 0, separator))
        assert "".join(piece for piece, _ in found) == text
        for number, (_, behind) in enumerate(found):
            assert list(text_pieces(path, behind, separator)) == found[number + 1 :]


@given(st.text(st.sampled_from("ab \n\r."), min_size=1), st.integers(1, 9))
def test_parts_are_cut_where_words_end(text, size):
    found = parts(text, size)
    assert "".join(found) == text and all(0 < len(part) <= size for part in found)


def test_where_a_text_is_cut():
    assert cut("one\ntwo\nth") == len("one\ntwo\n")
    assert cut("one\r\ntwo") == len("one\r\n")
    assert cut("one\n\ntwo \n") == len("one\n\ntwo"), "between words, where no line is"
    assert cut("one two") == len("one") and cut("one") == 3
    assert cut("one|two", "|") == 4 and cut("one two thr<|", "<|>") == len("one two")


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokens_are_those_of_the_whole_text(tmp_path, kind):
    tokenizer = TOKENIZERS[kind]
    found = open_tokens(task_of(tmp_path, TEXT, "more\n"), tokenizer)
    assert found.tokens.dtype == np.uint16 and len(found.documents) == 0
    expected = [*tokenizer.encode(TEXT), *tokenizer.encode("more\n")]
    assert found.tokens.tolist() == expected
    assert found.text_bytes == len((TEXT + "more\n").encode())


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        (
            {"documents": "lines"},
            ["a\n\nbc\n" + "long " * 40 + "\nend", "\n\nx\n", "y" * 64 + "\nz"],
        ),
        (
            {"documents": "separated", "separator": "<|>"},
            ["ab<|>c" + "d" * 99 + "<|><|>e<", "<|>f<|>"],
        ),
        ({"documents": "files"}, ["ab\ncd\n", "x" * 200]),
        ({"documents": "files", "separator": "<|>"}, ["ab", "x" * 200]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["characters", "bytes"])
def test_documents_are_found_and_end_with_their_separator(tmp_path, kind, options, texts):
    tokenizer = ByteTokenizer() if kind == "bytes" else CharacterTokenizer.of([*texts, "<|>\n"])
    task = task_of(tmp_path, *texts, **options)
    found = open_tokens(task, tokenizer)
    between = task.separator_between
    documents = [d for text in texts for d in (text.split(between) if between else [text]) if d]
    starts = [*found.documents[:, 0].astype(int), found.tokens.size]
    decoded = [
        tokenizer.decode(found.tokens[a:b].astype(int))
        for a, b in zip(starts, starts[1:], strict=False)
    ]
    assert decoded == [document + task.ending for document in documents]
    assert found.text_bytes == len("".join(decoded).encode())


def test_the_same_documents_have_the_same_hash(tmp_path):
    text = "ab\ncd\nab\n" + "long" * 30 + "\n" + "x" * 20 + "\n" + "long" * 30 + "\n"
    hashes = open_tokens(task_of(tmp_path, text, documents="lines"), ByteTokenizer()).documents[
        :, 1
    ]
    assert hashes[0] == hashes[2] and hashes[3] == hashes[5]
    assert len(set(hashes.tolist())) == 4


def test_words_have_no_token_for_a_line_end(tmp_path):
    found = open_tokens(task_of(tmp_path, "The fox\nThe\n", documents="lines"), TOKENIZERS["words"])
    assert found.documents[:, 0].tolist() == [0, 2] and found.tokens.size == 3


def test_parts_of_words_are_those_of_the_whole_text(tmp_path):
    tokenizer = BPETokenizer.train([TEXT], 300)
    found = open_tokens(task_of(tmp_path, TEXT), tokenizer)
    assert found.tokens.tolist() == tokenizer.encode(TEXT).tolist()
    task = task_of(tmp_path, "a b\nc\n", documents="lines")
    assert tokenizer.decode(open_tokens(task, tokenizer).tokens.astype(int)) == "a b\nc\n"


class Killed(BaseException):
    pass


@pytest.mark.parametrize("documents", ["none", "lines", "files"])
@pytest.mark.parametrize("after", [1, 2, 5])
def test_making_goes_on_from_the_last_whole_piece(tmp_path, cache, after, documents):
    task = task_of(tmp_path, TEXT, TEXT[5:], documents=documents)
    told = []

    def kill(done, total):
        told.append(done)
        if len(told) == after:
            raise Killed

    with pytest.raises(Killed):
        open_tokens(task, ByteTokenizer(), kill)
    (partial,) = cache.glob("*.partial")
    with open(partial / "tokens.bin", "ab") as file:
        file.write(b"half a piece")
    begun = []
    found = open_tokens(task, ByteTokenizer(), lambda done, total: begun.append((done, total)))
    assert begun[0][0] >= told[-1] and begun[-1] == (begun[-1][1],) * 2
    assert not list(cache.glob("*.partial"))
    for path in cache.glob("*/tokens.json"):
        path.unlink()
    whole = open_tokens(task, ByteTokenizer())
    assert same_bits(found.tokens, whole.tokens) and same_bits(found.documents, whole.documents)
    assert (found.digest, found.text_bytes) == (whole.digest, whole.text_bytes)


def test_it_is_made_once_and_anew_where_it_is_damaged(tmp_path, cache):
    task = task_of(tmp_path, TEXT)
    told = []
    first = open_tokens(task, ByteTokenizer(), lambda *how: told.append(how))
    tokens, count = first.tokens.copy(), len(told)
    assert count
    open_tokens(task, ByteTokenizer(), lambda *how: told.append(how))
    assert len(told) == count, "nothing is read again"
    (place,) = (path.parent for path in cache.glob("*/tokens.bin"))
    for damage in (
        lambda: (place / "tokens.bin").write_bytes(b"x" * tokens.nbytes),
        lambda: (place / "tokens.bin").write_bytes(b""),
        lambda: (place / "tokens.json").write_text("[]"),
        lambda: (place / "documents.bin").unlink(),
    ):
        damage()
        assert same_bits(open_tokens(task, ByteTokenizer()).tokens, tokens)
    about = json.loads((place / "tokens.json").read_text())
    assert about["dtype"] == "uint16" and about["tokens"] == tokens.size
    assert about["files"] == list(task.files)


def test_another_tokenizer_or_cut_has_a_file_of_its_own(tmp_path, cache):
    for tokenizer in (ByteTokenizer(), TOKENIZERS["characters"]):
        for options in ({}, {"documents": "lines"}, {"documents": "files"}):
            open_tokens(task_of(tmp_path, TEXT, **options), tokenizer)
    assert len(list(cache.glob("*/tokens.bin"))) == 6


def test_what_nobody_uses_is_removed(tmp_path, cache):
    open_tokens(task_of(tmp_path, TEXT), ByteTokenizer())
    (cache / "other").mkdir()
    for path in cache.iterdir():
        os.utime(path, (0, 0))
    open_tokens(task_of(tmp_path, TEXT[1:]), ByteTokenizer())
    assert len(list(cache.glob("*/tokens.bin"))) == 1 and (cache / "other").is_dir()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TEXT.encode() + b"\xe9t\xe9", f"is not UTF-8: byte {len(TEXT.encode())} is 0xe9"),
        (b"\xef\xbb\xbf" + b"a" * 70 + b"\xff" + b"a" * 90, "byte 73 is 0xff"),
        (b"a" * 63 + "\u00e9".encode()[:1], "byte 63 is 0xc3"),
        (TEXT.encode() + b"Z", "part that begins at byte .* never seen the character 'Z'"),
    ],
)
def test_a_text_that_is_refused_leaves_nothing(tmp_path, cache, content, message):
    with pytest.raises(InvalidValueError, match=message):
        open_tokens(task_of(tmp_path, content), TOKENIZERS["characters"])
    assert not [path for path in cache.iterdir() if path.suffix != ".lock"]


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_an_empty_file_is_named(tmp_path, content):
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(InvalidValueError, match="t is empty"):
        check_files([tmp_path / "t"])


def test_what_is_no_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidValueError, match="pipe is a pipe or a device"):
        check_files([tmp_path / "pipe"])
    with pytest.raises(InvalidValueError, match="cannot read .*: Is a directory"):
        check_files([tmp_path])
    with pytest.raises(InvalidValueError, match="cannot read .*none: No such file"):
        files_digest([tmp_path / "none"])


def test_a_text_that_changes_meanwhile_is_refused(tmp_path, cache):
    task = task_of(tmp_path, TEXT)

    def change(done, total):
        (tmp_path / "0.txt").write_text(TEXT.upper())

    with pytest.raises(InvalidValueError, match="has changed"):
        open_tokens(task, ByteTokenizer(), change)
    with pytest.raises(InvalidValueError, match="has changed"):
        open_tokens(task, ByteTokenizer())
    assert not [path for path in cache.iterdir() if path.suffix != ".lock"]


def test_a_cache_that_cannot_be_written_says_which_variable_names_another(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(token_file, "cache_directory", lambda: tmp_path / "file" / "tokens")
    with pytest.raises(InvalidValueError, match="FASTFORMER_CACHE_DIR names another place"):
        open_tokens(task_of(tmp_path, TEXT), ByteTokenizer())
    monkeypatch.undo()
    monkeypatch.setenv("FASTFORMER_CACHE_DIR", "/chosen")
    assert str(token_file.cache_directory()) == "/chosen/tokens"


def test_without_a_home_to_write_to_tokens_are_kept_where_only_their_owner_can(
    tmp_path, monkeypatch
):
    monkeypatch.undo()
    (tmp_path / "file").touch()
    monkeypatch.delenv("FASTFORMER_CACHE_DIR", raising=False)
    home = [tmp_path / "home"]
    monkeypatch.setattr(
        token_file.platformdirs, "user_cache_dir", lambda *names, **options: str(home[0])
    )
    monkeypatch.setattr(token_file.tempfile, "gettempdir", lambda: str(tmp_path))
    assert token_file.cache_directory() == tmp_path / "home" / "tokens"
    home[0] = tmp_path / "file" / "home"
    place = token_file.cache_directory()
    assert place == tmp_path / f"fastformer-{os.getuid()}" / "tokens"
    assert place.parent.stat().st_mode & 0o777 == 0o700
    place.parent.chmod(0o777)
    with pytest.raises(InvalidValueError, match="others may write"):
        token_file.cache_directory()
