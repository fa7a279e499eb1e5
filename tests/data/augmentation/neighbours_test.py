"""Nearest words by cosine, from any file of vectors, however odd its lines."""

import dataclasses
import gzip
import zipfile

import numpy as np
import pytest
from tiny_mlm import make_tokenizer

from tinybert_jax.data.augmentation import neighbours
from tinybert_jax.data.augmentation.neighbours import (
    load_neighbours,
    nearest,
    read_vectors,
    vector_neighbours,
)
from tinybert_jax.data.augmentation.rules import CANDIDATES, RULES
from tinybert_jax.errors import InputError
from tinybert_jax.models.files.tokenizer import all_tokens, whole_words


def write(tmp_path, content, name="vectors.txt"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_vectors(tmp_path, words, width=4, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(len(words), width)).astype(np.float32)
    lines = [f"{word} {' '.join(map(str, row))}" for word, row in zip(words, vectors.tolist(), strict=True)]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return write(tmp_path, "\n".join(lines) + "\n"), unit


def test_neighbours_are_those_of_highest_cosine_without_the_word_itself(tmp_path):
    # the original code gives NaN for a file of fewer than 100,000 vectors
    words = [f"word{i}" for i in range(50)]
    path, unit = write_vectors(tmp_path, words)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -2)
    nearest = vector_neighbours(path).find(["word7", "absent", "Word31", "word7"])
    for word, row in ((7, 0), (31, 2), (7, 3)):
        assert nearest[row] == [words[i] for i in np.argsort(-cosines[word])[:CANDIDATES]]
    assert nearest[1] == []


@pytest.mark.parametrize(("block", "scores"), [(1, 10**6), (3, 10**6), (1024, 40 * 5), (1024, 1)])
def test_blocks_do_not_change_what_is_found(monkeypatch, block, scores):
    random = np.random.default_rng(0)
    queries, vectors = random.normal(size=(20, 8)), random.normal(size=(40, 8))
    whole = nearest(queries, vectors, 6)
    np.testing.assert_array_equal(whole, np.argsort(-(queries @ vectors.T), axis=1)[:, :6])
    monkeypatch.setattr(neighbours, "BLOCK", block)
    monkeypatch.setattr(neighbours, "BLOCK_SCORES", scores)
    np.testing.assert_array_equal(nearest(queries, vectors, 6), whole)


def test_of_equal_vectors_the_earlier_comes_first_and_all_are_given_where_there_are_few():
    vectors = np.array([[1, 0], [0, 1], [0, 1], [0, 1]], np.float32)
    assert nearest(vectors[1:2], vectors, 9).tolist() == [[1, 2, 3, 0]]


def test_the_first_line_of_word2vec_is_no_word(tmp_path):
    words, vectors = read_vectors(write(tmp_path, "2 3 \ngood 1 0 0 \nbad 0 3 4 \n"))
    assert words == ["good", "bad"]
    np.testing.assert_allclose(vectors, [[1, 0, 0], [0, 0.6, 0.8]])


@pytest.mark.parametrize("first", ["2 2", "2 99999999999999999999", "2 " + "9" * 5000])
def test_a_first_line_that_the_others_contradict_is_no_header(tmp_path, first, capsys):
    words, vectors = read_vectors(write(tmp_path, f"{first}\ngood 1 0 0\nbad 0 3 4\n"))
    assert words == ["good", "bad"]
    np.testing.assert_allclose(vectors, [[1, 0, 0], [0, 0.6, 0.8]])
    assert "no word with a vector; lines left out: 1" in capsys.readouterr().err


def test_a_byte_order_mark_is_no_part_of_a_word(tmp_path):
    assert read_vectors(write(tmp_path, "\ufeffgood 1 0\nbad 0 1\n"))[0] == ["good", "bad"]
    assert read_vectors(write(tmp_path, "\ufeff2 2\ngood 1 0\nbad 0 1\n"))[0] == ["good", "bad"]


def test_vectors_have_length_1_where_float32_does_not_hold_their_squares(tmp_path):
    _, vectors = read_vectors(write(tmp_path, "big 3e38 -3e38\nsmall 1e-30 0\nleast 0 1e-45\n"))
    np.testing.assert_allclose(vectors, [[0.5**0.5, -(0.5**0.5)], [1, 0], [0, 1]], rtol=1e-6)


def test_ids_that_no_token_has_are_no_words(tmp_path):
    """A vocab.txt that holds a token twice gives it the later id."""
    tokenizer = make_tokenizer(tmp_path, ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "walk", "talk", "walk"))
    assert all_tokens(tokenizer)[5:] == ["", "talk", "walk"]
    assert whole_words(tokenizer).tolist() == [False] * 6 + [True] * 2
    near = load_neighbours(None, np.eye(8, dtype=np.float32), tokenizer, "default")
    assert near.find(["walk"]) == [["talk"]]


def test_words_may_hold_spaces_and_numbers(tmp_path, capsys):
    # the original code crashes on the first of these
    path = write(tmp_path, ". . . 1 0 0\ngood 0 1 0\n1 0 0 1\nat name@x.org 1 1 0\n\u00a0 0 1 1\nnew\t1\t0\t1\r\n")
    assert read_vectors(path)[0] == [". . .", "good", "1", "at name@x.org", "\u00a0", "new"]
    assert capsys.readouterr().err == ""


def test_lines_that_cannot_be_used_are_counted_once_and_the_first_is_named(tmp_path, capsys):
    good = "good 1 0 0\nfine 0 1 0\n"
    bad = b"short 1 0\nword 1 x 0\nword 1_0 0 1\n"
    bad += b"\xff\xfe 1 0 0\nzero 0 0 0\nnan 1 nan 0\ninf 1 inf 0\nhuge 1 1e300 0\n\n"
    path = write(tmp_path, good.encode() + bad + b"bad 0 0 1\n")
    words, vectors = read_vectors(path)
    assert words == ["good", "fine", "bad"]
    assert np.isfinite(vectors).all()
    assert capsys.readouterr().err == f"note: {path}:3: no word with a vector; lines left out: 9\n"


def test_of_a_word_that_comes_twice_the_first_vector_counts(tmp_path):
    words, vectors = read_vectors(write(tmp_path, "a 1 0\nb 0 1\na 0 1\n"))
    assert (words, vectors.tolist()) == (["a", "b"], [[1, 0], [0, 1]])


@pytest.mark.parametrize("content", [b"", b"\n\n", b"just some text\nof two lines\n", b"\x93\xf4\xe0\xff" * 50])
def test_a_file_without_vectors_is_refused(tmp_path, content):
    with pytest.raises(InputError, match=r"vectors\.txt:1: no line holds a word and its vector"):
        read_vectors(write(tmp_path, content))
    with pytest.raises(InputError, match=r"absent\.txt: cannot be read \(No such file"):
        vector_neighbours(tmp_path / "absent.txt")


def test_official_reads_the_first_vectors_only(tmp_path, monkeypatch):
    monkeypatch.setitem(RULES, "official", dataclasses.replace(RULES["official"], vectors=20))
    path, _ = write_vectors(tmp_path, [f"word{i}" for i in range(50)])
    tokenizer, table = make_tokenizer(tmp_path), np.ones((100, 4), np.float32)
    neighbours = {
        preset: load_neighbours(path, table, tokenizer, preset) for preset in ("default", "paper", "official")
    }
    seen = {preset: {int(w[4:]) for w in near.find(["word3"])[0]} for preset, near in neighbours.items()}
    assert max(seen["official"]) < 20 <= max(seen["default"])
    assert seen["paper"] == seen["default"]
    assert neighbours["official"].fingerprint != neighbours["default"].fingerprint == neighbours["paper"].fingerprint
    words, _ = read_vectors(write(tmp_path, "3 2\na 1 0\nb 0 1\nc 1 1\n"), limit=2)
    assert words == ["a", "b"], "a header is no vector"


def test_the_file_is_searched_once_for_a_set_of_words(tmp_path, monkeypatch):
    path, _ = write_vectors(tmp_path, ["a", "b", "c"])
    first = vector_neighbours(path).find(["a", "b"])
    monkeypatch.setattr(neighbours, "read_vectors", None)  # reading again would fail
    assert vector_neighbours(path).find(["a", "b"]) == first
    with pytest.raises(TypeError):
        vector_neighbours(path).find(["a", "c"])
    other, _ = write_vectors(tmp_path, ["a", "b", "c"], seed=1)
    with pytest.raises(TypeError):
        vector_neighbours(other).find(["a", "b"])


def test_without_a_file_the_models_embeddings_are_searched_and_a_note_says_so(tmp_path, capsys):
    tokenizer = make_tokenizer(tmp_path)
    table = np.random.default_rng(0).normal(size=(len(tokenizer) + 3, 8)).astype(np.float32)
    before = table.copy()
    near = load_neighbours(None, table, tokenizer, "default")
    assert "no --glove FILE" in capsys.readouterr().err
    (nearest,) = near.find(["walking"])
    ids = tokenizer("walking", add_special_tokens=False)["input_ids"]
    assert len(ids) == 2
    query = table[ids].mean(axis=0)
    whole = [i for i in range(len(tokenizer)) if whole_words(tokenizer)[i]]
    cosines = table[whole] @ query / np.linalg.norm(table[whole], axis=1)
    tokens = tokenizer.convert_ids_to_tokens(whole)
    assert nearest == [tokens[i] for i in np.argsort(-cosines)[:CANDIDATES]]
    assert near.find([]) == []
    np.testing.assert_array_equal(table, before)


def test_special_and_unused_tokens_and_later_pieces_are_no_words(tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    for token, is_word in zip(tokens, whole_words(tokenizer), strict=True):
        assert is_word == (not token.startswith(("##", "[")))


def test_a_file_of_vectors_may_be_compressed(tmp_path):
    text = "good 1 0 0\nbad 0 3 4\n"
    plain, compressed = write(tmp_path, text), tmp_path / "vectors.gz"
    compressed.write_bytes(gzip.compress(text.encode()))
    (words, vectors), (expected_words, expected) = read_vectors(compressed), read_vectors(plain)
    assert words == expected_words
    np.testing.assert_array_equal(vectors, expected)
    compressed.write_bytes(gzip.compress(text.encode())[:-9])
    with pytest.raises(InputError, match=r"vectors\.gz: damaged .*: fetch or compress it anew"):
        read_vectors(compressed)
    with zipfile.ZipFile(tmp_path / "glove.zip", "w") as archive:
        archive.write(plain)
    with pytest.raises(InputError, match=r"glove\.zip: a zip archive: unpack it, and give the text file"):
        read_vectors(tmp_path / "glove.zip")
