"""Rows -> tokens -> buckets -> batches: nothing is lost, doubled or reordered, and a batch depends on (seed, step)."""

import dataclasses
import itertools

import numpy as np
import pytest
from conftest import WORDS, make_tokenizer

from tinybert_jax.data import tokens as tokens_module
from tinybert_jax.data.batches import bucket_lengths, epoch_plan, eval_batches, steps_per_epoch, train_batches
from tinybert_jax.data.rows import Rows
from tinybert_jax.data.tokens import Tokens, TwoVocabularies, tokenize
from tinybert_jax.models.files.tokenizer import tokenizer_fingerprint

BUCKETS = (8, 16, 24)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("vocab"))


def make_rows(n, pair=False, seed=0, fingerprint="rows"):
    random = np.random.default_rng(seed)
    text = lambda: " ".join(random.choice(WORDS, random.integers(1, 20)))  # noqa: E731
    texts = [(text(), text()) if pair else (text(),) for _ in range(n)]
    return Rows(texts, random.integers(0, 2, n).astype(np.int32), ("a", "b"), fingerprint, range(1, n + 1))


def make_tokens(n, seed=0, longest=24):
    """Tokens without a tokenizer; every id tells its row."""
    lengths = np.random.default_rng(seed).integers(2, longest + 1, n)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = np.repeat(np.arange(1, n + 1), lengths).astype(np.int32)
    return Tokens(ids, offsets, (lengths // 2).astype(np.int32), np.arange(1, n + 1, dtype=np.float32), "tokens")


@pytest.mark.parametrize("pair", [False, True], ids=["one text", "pair"])
@pytest.mark.parametrize("max_length", [12, 64])
def test_batches_hold_what_the_tokenizer_gives(tokenizer, tmp_path, pair, max_length):
    rows = make_rows(30, pair)
    tokens = tokenize(rows, tokenizer, max_length, tmp_path)
    batch = tokens.batch(np.arange(30, dtype=np.int32), max_length)
    texts = [list(column) for column in zip(*rows.texts, strict=True)]
    expected = tokenizer(
        *texts, truncation="longest_first", max_length=max_length, padding="max_length", return_tensors="np"
    )
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        np.testing.assert_array_equal(getattr(batch, name), expected[name], err_msg=name)
        assert getattr(batch, name).dtype == np.int32
    np.testing.assert_array_equal(batch.labels, rows.labels)


@pytest.mark.parametrize("long_rows", [1, 2])
def test_a_note_says_how_many_rows_are_as_long_as_they_may_be(tokenizer, long_rows, capsys):
    texts = [(" ".join(WORDS[:1] * (9 if row < long_rows else 2)),) for row in range(40)]  # 5 % of 40 are 2
    tokenize(Rows(texts, None, ("a", "b"), f"{long_rows} long", range(40)), tokenizer, 8)
    said = "note: 2 of 40 rows have 8 tokens, where longer texts are cut (--max-length)\n"
    assert capsys.readouterr().err == (said if long_rows == 2 else "")


def test_many_chunks_give_the_same_tokens_as_one(tokenizer, tmp_path, monkeypatch):
    rows = make_rows(25)
    one = tokenize(rows, tokenizer, 16, tmp_path / "one")
    monkeypatch.setattr(tokens_module, "TOKENIZE_AT_ONCE", 7)
    many = tokenize(rows, tokenizer, 16, tmp_path / "many")
    np.testing.assert_array_equal(one.input_ids, many.input_ids)
    np.testing.assert_array_equal(one.offsets, many.offsets)


def test_tokens_are_made_once(tokenizer, tmp_path, monkeypatch):
    first = tokenize(make_rows(10), tokenizer, 16, tmp_path)
    monkeypatch.setattr(tokens_module, "_token_arrays", None)  # tokenizing again would fail
    second = tokenize(make_rows(10), tokenizer, 16, tmp_path)
    np.testing.assert_array_equal(first.input_ids, second.input_ids)
    assert first.fingerprint == second.fingerprint


def test_labels_are_those_of_the_rows_and_never_of_the_cache(tokenizer, tmp_path):
    rows = make_rows(10)
    tokenize(rows, tokenizer, 16, tmp_path)
    other = tokenize(dataclasses.replace(rows, labels=1 - rows.labels), tokenizer, 16, tmp_path)
    np.testing.assert_array_equal(other.labels, 1 - rows.labels)


@pytest.mark.parametrize(("names", "dtype"), [(("a", "b"), np.int32), ((), np.float32)])
def test_absent_labels_are_zeros(tokenizer, tmp_path, names, dtype):
    rows = dataclasses.replace(make_rows(5), labels=None, label_names=names)
    labels = tokenize(rows, tokenizer, 16, tmp_path).labels
    assert (labels.tolist(), labels.dtype) == ([0] * 5, dtype)


def test_rows_tokenizer_and_length_each_change_the_fingerprint(tokenizer, tmp_path):
    rows = make_rows(5)
    prints = [
        tokenize(rows, tokenizer, 16, tmp_path).fingerprint,
        tokenize(rows, tokenizer, 17, tmp_path).fingerprint,
        tokenize(dataclasses.replace(rows, fingerprint="other"), tokenizer, 16, tmp_path).fingerprint,
        tokenize(rows, make_tokenizer(tmp_path, [*WORDS[::-1], "more"]), 16, tmp_path).fingerprint,
    ]
    assert len(set(prints)) == 4


def test_a_tokenizer_that_cuts_on_the_left_finds_no_tokens_cut_on_the_right(tmp_path):
    rows, right, left = make_rows(20), make_tokenizer(tmp_path), make_tokenizer(tmp_path)
    left.truncation_side = "left"
    cut = [tokenize(rows, tokenizer, 8, tmp_path).input_ids.tolist() for tokenizer in (right, left)]
    assert cut[1] == tokenize(rows, left, 8, tmp_path / "of its own").input_ids.tolist() != cut[0]


def test_a_used_tokenizer_keeps_its_fingerprint(tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["the film"], truncation=True, max_length=7, padding="max_length")
    assert tokenizer_fingerprint(tokenizer) == before


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "deleted"])
def test_corrupt_cached_tokens_are_made_again(tokenizer, tmp_path, damage):
    rows = make_rows(40)
    tokens = tokenize(rows, tokenizer, 16, tmp_path)
    (file,) = tmp_path.rglob("tokens.npz")
    content = bytearray(file.read_bytes())
    if damage == "deleted":
        file.unlink()
    elif damage == "flipped":
        content[400] ^= 4
        file.write_bytes(content)
    else:
        file.write_bytes(content[: len(content) // 2 if damage == "truncated" else 0])
    np.testing.assert_array_equal(tokenize(rows, tokenizer, 16, tmp_path).input_ids, tokens.input_ids)


def test_few_rows_are_tokenized_without_a_progress_bar_and_many_with_one(tokenizer, tmp_path, monkeypatch, capfd):
    tokenize(make_rows(10), tokenizer, 64, tmp_path / "a")
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(tokens_module, "PROGRESS_FROM", 10)
    tokenize(make_rows(10), tokenizer, 16, tmp_path / "b")
    assert "10/10" in capfd.readouterr().err


@pytest.mark.parametrize("max_length", [8, 16, 17, 64, 100, 128, 129, 200, 256, 384, 512])
def test_buckets_are_few_and_end_at_the_maximum(max_length):
    buckets = bucket_lengths(max_length)
    few = bucket_lengths(max_length, steps=1)
    assert set(few) <= set(buckets)
    assert few[-1] == max_length
    assert all(after <= 2 * before for before, after in itertools.pairwise(few))
    assert buckets[-1] == max_length
    assert len(buckets) <= 10
    assert list(buckets) == sorted(set(buckets))
    assert all(length % 8 == 0 for length in buckets[:-1])


def plans():
    for n, batch_size, seed, epoch in itertools.product((1, 2, 31, 32, 33, 500), (1, 4, 32), (0, 7), (0, 3)):
        lengths = make_tokens(n, seed).lengths
        yield n, batch_size, lengths, epoch_plan(lengths, batch_size, BUCKETS, seed, epoch)


def test_every_row_comes_exactly_once_an_epoch():
    for n, _, _, (table, _) in plans():
        np.testing.assert_array_equal(np.sort(table[table >= 0]), np.arange(n))


def test_every_epoch_has_the_same_number_of_steps_and_one_batch_with_filler_at_most():
    for n, batch_size, _, (table, padded) in plans():
        assert table.shape == (steps_per_epoch(n, batch_size), batch_size) == (len(padded), batch_size)
        assert np.sum(np.any(table < 0, axis=1)) == (n % batch_size != 0)
        assert (table.dtype, padded.dtype) == (np.int32, np.int32)


def test_every_batch_is_padded_to_the_least_bucket_that_holds_it():
    for _, _, lengths, (table, padded) in plans():
        for rows, length in zip(table, padded, strict=True):
            assert length == next(b for b in BUCKETS if b >= lengths[rows[rows >= 0]].max())


def test_batches_mix_buckets_only_where_one_ends():
    lengths = make_tokens(500).lengths
    table, _ = epoch_plan(lengths, 32, BUCKETS, 0, 0)
    mixed = [len(set(np.searchsorted(BUCKETS, lengths[rows[rows >= 0]]))) > 1 for rows in table]
    assert sum(mixed) <= len(BUCKETS) - 1


def test_a_plan_depends_on_seed_and_epoch_alone():
    lengths = make_tokens(300).lengths
    table = lambda seed, epoch: epoch_plan(lengths, 8, BUCKETS, seed, epoch)[0].tolist()  # noqa: E731
    assert table(1, 2) == table(1, 2)
    assert table(1, 2) != table(1, 3)
    assert table(1, 2) != table(2, 2)


def test_rows_of_a_bucket_and_batches_are_in_no_order():
    lengths = np.full(1000, 5)
    table, _ = epoch_plan(lengths, 10, BUCKETS, 0, 0)
    assert abs(np.corrcoef(table.ravel(), np.arange(1000))[0, 1]) < 0.1
    _, padded = epoch_plan(make_tokens(3000).lengths, 10, BUCKETS, 0, 0)
    assert abs(np.corrcoef(padded, np.arange(len(padded)))[0, 1]) < 0.2


def test_a_row_longer_than_every_bucket_is_refused():
    with pytest.raises(ValueError, match="a row has 30 tokens; the longest bucket is 24"):
        epoch_plan(np.array([3, 30]), 2, BUCKETS, 0, 0)
    with pytest.raises(ValueError, match="a row of 24 tokens does not fit into 16"):
        make_tokens(200).batch(np.arange(200), 16)


def test_filler_rows_have_no_token_label_or_weight():
    tokens = make_tokens(4)
    batch = dataclasses.replace(tokens, pad_token_id=99).batch(np.array([2, -1, 0, -1], np.int32), 24)
    assert batch.example_mask.tolist() == [1, 0, 1, 0]
    assert batch.labels.tolist() == [3, 0, 1, 0]
    assert batch.attention_mask.sum(axis=1).tolist() == [tokens.lengths[2], 0, tokens.lengths[0], 0]
    assert not batch.token_type_ids[[1, 3]].any()
    assert (batch.input_ids[[1, 3]] == 99).all()
    assert (batch.labels.dtype, batch.example_mask.dtype) == (np.float32, np.float32)


def equal(left, right):
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def test_a_run_that_continues_sees_the_batches_of_an_unbroken_one():
    tokens = make_tokens(100)
    whole = list(train_batches(tokens, 8, BUCKETS, 5, 0, 40))  # three epochs of 13 steps, and one step more
    assert len(whole) == 40
    for start in (1, 12, 13, 39):
        rest = list(train_batches(tokens, 8, BUCKETS, 5, start, 40))
        assert len(rest) == 40 - start
        assert all(map(equal, rest, whole[start:]))


def test_labels_of_tokens_and_answers_are_batched_like_the_tokens():
    tokens = make_tokens(10)
    per_token = dataclasses.replace(tokens, labels=np.arange(len(tokens.input_ids), dtype=np.int32))
    batch = per_token.batch(np.array([3, -1], np.int32), 24)
    n = tokens.lengths[3]
    np.testing.assert_array_equal(batch.labels[0, :n], np.arange(tokens.offsets[3], tokens.offsets[4]))
    assert (batch.labels[0, n:] == -1).all()
    assert (batch.labels[1] == -1).all()
    spans = dataclasses.replace(tokens, labels=np.arange(20, dtype=np.int32).reshape(10, 2))
    np.testing.assert_array_equal(spans.batch(np.array([3, -1], np.int32), 24).labels, [[6, 7], [0, 0]])


def test_two_vocabularies_give_both_tokens_of_a_row_at_the_longer_length():
    tokens, teacher = make_tokens(10), make_tokens(10, seed=9)
    both = TwoVocabularies(tokens, teacher)
    np.testing.assert_array_equal(both.lengths, np.maximum(tokens.lengths, teacher.lengths))
    rows = np.array([2, 0], np.int32)
    batch = both.batch(rows, 24)
    assert equal(batch._replace(teacher_inputs=None), tokens.batch(rows, 24))
    for array, expected in zip(batch.teacher_inputs, teacher.batch(rows, 24)[:3], strict=True):
        np.testing.assert_array_equal(array, expected)


def test_train_batches_follow_the_plan_of_each_epoch():
    tokens = make_tokens(100)
    steps = steps_per_epoch(100, 8)
    batches = list(train_batches(tokens, 8, BUCKETS, 5, 0, 3 * steps))
    for epoch in range(3):
        table, padded = epoch_plan(tokens.lengths, 8, BUCKETS, 5, epoch)
        for i in range(steps):
            assert equal(batches[epoch * steps + i], tokens.batch(table[i], int(padded[i])))


def test_no_steps_give_no_batches():
    assert list(train_batches(make_tokens(10), 8, BUCKETS, 0, 3, 3)) == []


def test_an_iterator_may_be_left_before_its_end():
    batches = train_batches(make_tokens(100), 8, BUCKETS, 0, 0, 10_000)
    assert next(batches).input_ids.shape[0] == 8
    del batches


@pytest.mark.parametrize("n", [1, 7, 8, 100])
def test_evaluation_covers_every_row_once_and_can_be_put_back_in_order(n):
    tokens = make_tokens(n)
    labels = np.zeros(n)
    shapes = []
    for rows, batch in eval_batches(tokens, 8, BUCKETS):
        real = rows >= 0
        np.testing.assert_array_equal(batch.example_mask, real)
        labels[rows[real]] += batch.labels[real]
        np.testing.assert_array_equal(batch.input_ids[real][:, 0], rows[real] + 1)
        shapes.append(batch.input_ids.shape)
    np.testing.assert_array_equal(labels, tokens.labels)
    assert shapes == sorted(shapes)
    assert {length for _, length in shapes} <= set(BUCKETS)
    assert len(shapes) == steps_per_epoch(n, 8)
