"""Sequences lose no token, mix no documents but where a random text is asked for, and depend on the seed alone."""

import itertools

import numpy as np
import pytest
from conftest import family_tokenizer

from tinybert_jax.data.corpus.sequences import make_recipe, sequences, split_documents
from tinybert_jax.errors import InputError
from tinybert_jax.settings.sources import CorpusSource

WORDS = "the a film plot is was good bad dull fine very not and so".split()


def make_tokenizer(folder, more=()):
    from transformers import BertTokenizer

    path = folder / f"vocab{len(more)}.txt"
    # every document of DOCUMENTS has a word of its own, so that each token tells where it is from
    names = [f"doc{i}" for i in range(60)]
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *WORDS, *names, *more]))
    return BertTokenizer(vocab=str(path))


def make_documents(n=60, seed=0):
    """Documents of lines of sentences; the words of document i are `doci`, and random ones."""
    random = np.random.default_rng(seed)

    def sentence(i):
        return " ".join([*random.choice(WORDS, random.integers(0, 12)), f"doc{i}"]) + "."

    return [[" ".join(sentence(i) for _ in range(3)) for _ in range(random.integers(1, 6))] for i in range(n)]


DOCUMENTS = make_documents()


def join(documents):
    return "\n\n".join("\n".join(lines) for lines in documents) + "\n"


def read_back(path):
    """The records of a shard, as lists."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    with ArrayRecordDataSource(str(path)) as source:
        return [np.frombuffer(record, "<u2").tolist() for record in source]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("vocab"))


@pytest.fixture(scope="module", params=["bert", "roberta", "xlm-roberta"])
def any_tokenizer(request, tokenizer):
    return tokenizer if request.param == "bert" else family_tokenizer(request.param, [*WORDS, "."])


def recipe_of(tokenizer, max_length=24, seed=0, **options):
    return make_recipe(CorpusSource(("not read",), **options), tokenizer, max_length, seed)


def made(documents, recipe, number=0):
    """Pair start and ids of every sequence."""
    return [(r[0], r[1:].tolist()) for r in sequences(join(documents).encode(), recipe, number)]


def tokens_of(tokenizer, document):
    return tokenizer(" ".join(document), add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("short", [0.0, 0.1, 1.0])
def test_every_token_comes_once_and_in_order(any_tokenizer, short):
    rows = made(DOCUMENTS, recipe_of(any_tokenizer, short_sequence_probability=short))
    text = [token for _, ids in rows for token in ids[1:-1]]
    assert text == [token for document in DOCUMENTS for token in tokens_of(any_tokenizer, document)]
    for pair_start, ids in rows:
        assert ids[0] == any_tokenizer.cls_token_id
        assert ids[-1] == any_tokenizer.sep_token_id
        assert pair_start == len(ids) <= 24


def test_sequences_are_whole_sentences_and_as_many_as_fit(tokenizer):
    full_stop = tokenizer.convert_tokens_to_ids(".")
    rows = [ids[1:-1] for _, ids in made(DOCUMENTS, recipe_of(tokenizer, short_sequence_probability=0.0))]
    names = [tokenizer.convert_ids_to_tokens(row[-2]) for row in rows]
    for (row, name), (following, following_name) in itertools.pairwise(zip(rows, names, strict=True)):
        assert row[-1] == full_stop
        if name == following_name:
            assert len(row) + following.index(full_stop) + 1 > 22  # the next sentence would not have fitted


def test_no_sequence_mixes_documents(tokenizer):
    names = {tokenizer.convert_tokens_to_ids(f"doc{i}") for i in range(60)}
    for _, ids in made(DOCUMENTS, recipe_of(tokenizer)):
        assert len(names & set(ids)) <= 1


def test_a_sentence_that_is_too_long_is_cut_and_goes_on(tokenizer):
    rows = made([["good " * 50]], recipe_of(tokenizer, short_sequence_probability=0.0))
    assert [len(ids) - 2 for _, ids in rows] == [22, 22, 6]


def test_short_sequences_have_uniform_lengths(tokenizer):
    rows = made([["good " * 50_000]], recipe_of(tokenizer, short_sequence_probability=1.0))
    lengths = np.array([len(ids) - 2 for _, ids in rows[:-1]])
    counts = np.bincount(lengths, minlength=23)[2:]
    assert lengths.min() == 2
    assert lengths.max() == 22
    assert counts.std() < 3 * np.sqrt(len(lengths) / 21)
    long = made([["good " * 50_000]], recipe_of(tokenizer, short_sequence_probability=0.1))
    assert np.mean([len(ids) < 24 for _, ids in long]) == pytest.approx(0.1 * 20 / 21, abs=0.02)


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta"])
def test_pairs_are_framed_as_the_tokenizer_frames_them(family):
    tokenizer = family_tokenizer(family, [*WORDS, "."])
    rows = made(DOCUMENTS, recipe_of(tokenizer, max_length=32, pairs=True))
    assert max(len(ids) for _, ids in rows) == 32
    for pair_start, ids in rows:
        assert ids[0] == tokenizer.cls_token_id
        border = ids.index(tokenizer.sep_token_id)
        assert ids[border:].count(tokenizer.sep_token_id) == (1 if border == len(ids) - 1 else 3)
        assert border == len(ids) - 1 or ids[border + 1] == ids[-1] == tokenizer.sep_token_id
        assert pair_start == len(ids), "there is one token type"
    with pytest.raises(InputError, match="max_length is 5; with its special tokens a sequence needs 6"):
        recipe_of(tokenizer, max_length=5, pairs=True)


def test_pairs_are_continuations_and_random_texts_in_equal_parts(tokenizer):
    names = {tokenizer.convert_tokens_to_ids(f"doc{i}") for i in range(60)}
    documents = [["good fine doc%d." % (i % 60)] * 40 for i in range(60)]  # noqa: UP031
    rows = made(documents, recipe_of(tokenizer, max_length=23, pairs=True, short_sequence_probability=0.0))
    same = []
    for start, ids in rows:
        first, second = set(ids[:start]) & names, set(ids[start:]) & names
        assert ids[0] == tokenizer.cls_token_id
        assert ids[start - 1] == ids[-1] == tokenizer.sep_token_id
        assert ids.count(tokenizer.sep_token_id) == 2
        assert len(ids) <= 23
        assert len(first) == len(second) == 1
        same.append(first == second)
    assert len(rows) > 500
    assert np.mean(same) == pytest.approx(0.5, abs=0.07)


@pytest.mark.parametrize("short", [0.0, 0.5])
def test_pairs_lose_no_text(tokenizer, short):
    random = np.random.default_rng(0)
    documents = [[f"doc{i} " * n + "." for n in random.integers(1, 30, 10)] for i in range(60)]
    rows = iter(made(documents, recipe_of(tokenizer, pairs=True, short_sequence_probability=short)))
    for i, document in enumerate(documents):
        name, tokens = tokenizer.convert_tokens_to_ids(f"doc{i}"), tokens_of(tokenizer, document)
        text = []
        while len(text) < len(tokens):
            start, ids = next(rows)
            text += ids[1 : start - 1]
            if ids[start] == name:  # a continuation
                text += ids[start:-1]
        assert text == tokens
    assert next(rows, None) is None


def test_pairs_of_a_single_document_continue_it(tokenizer):
    rows = made(DOCUMENTS[:1], recipe_of(tokenizer, pairs=True))
    text = [t for start, ids in rows for t in [*ids[1 : start - 1], *ids[start:-1]]]
    assert text == tokens_of(tokenizer, DOCUMENTS[0])
    assert any(start < len(ids) for start, ids in rows)


def test_the_longer_text_of_a_pair_is_cut_first(tokenizer):
    documents = [["good " * 40 + "."], ["bad " * 40 + "."]]
    for start, ids in made(documents, recipe_of(tokenizer, pairs=True, short_sequence_probability=0.0))[:2]:
        first, second = start - 2, len(ids) - start - 1
        assert first + second == 21
        assert abs(first - second) == 1


def test_random_numbers_are_those_of_seed_and_number(tokenizer):
    recipe = recipe_of(tokenizer, pairs=True)
    assert made(DOCUMENTS, recipe) == made(DOCUMENTS, recipe)
    assert made(DOCUMENTS, recipe) != made(DOCUMENTS, recipe, number=1)
    assert made(DOCUMENTS, recipe) != made(DOCUMENTS, recipe_of(tokenizer, pairs=True, seed=1))


def test_a_used_tokenizer_cuts_nothing(tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    before = made(DOCUMENTS, recipe_of(tokenizer))
    tokenizer(["good"], truncation=True, max_length=3, padding="max_length")
    assert made(DOCUMENTS, recipe_of(tokenizer)) == before


def test_documents_are_blocks_or_lines():
    text = " = Title = \r\n\r\nOne. Two? (three!) 0.5 mm\r\nfour\n \t\n\nFive.\u2028six\n".encode()
    blocks = [["= Title ="], ["One.", "Two?", "(three!) 0.5 mm", "four"], ["Five.", "six"]]
    assert list(split_documents(text, False)) == blocks
    lines = [["= Title ="], ["One.", "Two?", "(three!) 0.5 mm"], ["four"], ["Five.", "six"]]
    assert list(split_documents(text, True)) == lines


def test_ids_above_16_bits_have_their_own_type(tokenizer, tmp_path):
    assert recipe_of(tokenizer).dtype == "<u2"
    large = make_tokenizer(tmp_path, [f"w{i}" for i in range(1 << 16)])
    recipe = recipe_of(large)
    assert recipe.dtype == "<i4"
    (record,) = sequences(b"w65535", recipe, 0)
    assert record.tolist() == [3, 2, large.convert_tokens_to_ids("w65535"), 3]


@pytest.mark.parametrize(("max_length", "pairs"), [(3, False), (4, True), (1 << 16, False)])
def test_a_length_that_holds_no_text_is_refused(tokenizer, max_length, pairs):
    with pytest.raises(InputError, match=f"max_length is {max_length}"):
        recipe_of(tokenizer, max_length, pairs=pairs)


def test_a_tokenizer_without_special_tokens_is_refused(tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    tokenizer.sep_token = None
    with pytest.raises(InputError, match="no sep token"):
        recipe_of(tokenizer)
