"""A variant is a draw from the candidates: a function of (seed, row, number), the same as ids and as text."""

import dataclasses
import itertools
import shutil
import time
from itertools import product

import numpy as np
import pytest
from conftest import family_tokenizer, rest_long
from tiny_mlm import VOCABULARY, build, make_mlm, make_rows, make_tokenizer

from tinybert_jax.data.augmentation import build as build_module
from tinybert_jax.data.augmentation import candidate_table
from tinybert_jax.data.augmentation.candidate_table import load_table
from tinybert_jax.data.augmentation.neighbours import Neighbours
from tinybert_jax.data.augmentation.variants import (
    PROBABILITY,
    cut_longest_first,
    draw,
    load_augmented,
    variant_texts,
    write_variants,
)
from tinybert_jax.data.batches import bucket_lengths, train_batches
from tinybert_jax.data.rows import read_rows
from tinybert_jax.data.tokens import encode
from tinybert_jax.errors import InputError
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.files.frame import frame_of
from tinybert_jax.settings.sources import DataSource
from tinybert_jax.settings.tasks import get_task

N, VARIANTS = 12, 5


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("vocab"))


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_mlm(tokenizer)


@pytest.fixture(scope="module", params=[False, True], ids=["one text", "pair"])
def made(request, tokenizer, model, tmp_path_factory):
    """Rows and the directory of their candidates."""
    rows = make_rows(N, request.param)
    directory = tmp_path_factory.mktemp("table") / "out"
    near = Neighbours(lambda words: [["softest", "talked", "film"]] * len(words), "near")
    build(directory, rows, tokenizer, model, variants=VARIANTS, near=near)
    return rows, directory


@pytest.fixture(scope="module")
def pairs(tokenizer, model, tmp_path_factory):
    """Rows of long pairs and the directory of their candidates."""
    rows = make_rows(40, pair=True, seed=1)
    directory = tmp_path_factory.mktemp("pairs") / "out"
    build(directory, rows, tokenizer, model, variants=VARIANTS)
    return rows, directory


@pytest.mark.parametrize("max_length", [8, 9, 12, 64])
def test_a_batch_holds_what_the_tokenizer_makes_of_the_variants_texts(made, tokenizer, max_length):
    rows, directory = made
    augmented = load_augmented(directory, rows, tokenizer, max_length, seed=3)
    texts = [texts for i in range(N) for texts in variant_texts(augmented, rows, tokenizer, i)]
    expected = tokenizer(
        *([row[i] for row in texts] for i in range(len(texts[0]))),
        truncation="longest_first",
        max_length=max_length,
        padding="max_length",
        return_tensors="np",
    )
    batch = augmented.batch(np.arange(len(augmented)), max_length)
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        np.testing.assert_array_equal(getattr(batch, name), expected[name], err_msg=name)
        assert getattr(batch, name).dtype == np.int32
    np.testing.assert_array_equal(batch.labels, np.repeat(rows.labels, VARIANTS))


@pytest.mark.parametrize(
    ("preset", "family"),
    rest_long(
        product(["default", "paper", "official"], ["roberta", "xlm-roberta"]),
        [("default", "roberta")],
    ),
)
def test_tokens_that_hold_spaces_are_drawn_and_written_with_them(family, preset, tmp_path):
    tokenizer = family_tokenizer(family, [word for word in VOCABULARY if word.isalpha()])
    space = frame_of(tokenizer).space
    made = make_rows(6, pair=True)
    rows = dataclasses.replace(made, texts=[*made.texts, (" film  good, (film)", "Caf\u00e9!"), ("film", "don't")] * 3)
    rows = dataclasses.replace(rows, labels=np.zeros(len(rows.texts), np.int32))
    near = Neighbours(lambda words: [["softest", "talked", "film"]] * len(words), "near")
    build(tmp_path / "out", rows, tokenizer, make_mlm(tokenizer), preset, variants=8, near=near)
    for max_length in (9, 64):
        augmented = load_augmented(tmp_path / "out", rows, tokenizer, max_length, seed=3)
        texts = [texts for i in range(len(rows.texts)) for texts in variant_texts(augmented, rows, tokenizer, i)]
        batch = augmented.batch(np.arange(len(augmented)), max_length)
        expected = encode(texts, tokenizer, max_length).batch(np.arange(len(texts)), max_length)
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            np.testing.assert_array_equal(getattr(batch, name), getattr(expected, name), err_msg=name)
    assert len(set(texts)) > 2 * len(rows.texts)
    table = augmented.table
    first = [table.pieces[table.word_pieces[j]] for j in range(len(table.word_pieces) - 1)]
    for j, id_ in enumerate(first):
        for candidate in table.candidates[table.word_candidates[j] : table.word_candidates[j + 1]]:
            number = table.phrase_pieces[-1 - candidate] if candidate < 0 else None
            begins = tokenizer.convert_ids_to_tokens(
                int(candidate if number is None else table.phrases[number])
            ).startswith(space)
            assert begins == tokenizer.convert_ids_to_tokens(int(id_)).startswith(space)


def test_some_words_are_replaced_by_several_pieces_and_some_of_several_are_replaced(made, tokenizer):
    """Otherwise the tests of this file would prove little."""
    rows, directory = made
    table, _ = load_table(directory, rows, tokenizer)
    several = np.diff(table.word_pieces) > 1
    assert (np.diff(table.word_candidates)[several] > 0).any()
    assert (np.diff(table.phrase_pieces) > 1).any()


def test_candidates_of_several_pieces_are_written_as_they_are_tokenised(tokenizer, model, tmp_path):
    rows = dataclasses.replace(make_rows(4), texts=[("walking slowly",)] * 4)
    near = Neighbours(lambda words: [["talked", "un-play", "softest", "?"]] * len(words), "near")
    build(tmp_path / "out", rows, tokenizer, model, variants=30, near=near)
    augmented = load_augmented(tmp_path / "out", rows, tokenizer, 16, 0)
    texts = [text for i in range(4) for (text,) in variant_texts(augmented, rows, tokenizer, i)]
    words = {word for text in texts for word in text.split(" ")}
    assert words == {"walking", "slowly", "talked", "softest"}, "what the vocabulary cannot write is no candidate"
    batch = augmented.batch(np.arange(len(augmented)), 16)
    expected = tokenizer(texts, padding="max_length", max_length=16, return_tensors="np")["input_ids"]
    np.testing.assert_array_equal(batch.input_ids, expected)


def test_variant_0_is_the_row_itself(made, tokenizer):
    rows, directory = made
    augmented = load_augmented(directory, rows, tokenizer, 64, 0)
    for i in range(N):
        assert variant_texts(augmented, rows, tokenizer, i)[0] == rows.texts[i]
    assert len(augmented) == N * VARIANTS


def test_a_variant_depends_on_seed_row_and_number_alone(made, tokenizer):
    rows, directory = made
    one, same, other = (load_augmented(directory, rows, tokenizer, 64, seed) for seed in (1, 1, 2))
    numbers = np.random.default_rng(0).permutation(len(one))
    whole = one.batch(numbers, 64)
    for at, number in enumerate(numbers):
        alone = same.batch(np.array([number]), 64, epoch=7)
        np.testing.assert_array_equal(alone.input_ids[0], whole.input_ids[at])
    assert not np.array_equal(other.batch(numbers, 64).input_ids, whole.input_ids)
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_words_are_replaced_with_the_papers_probability_by_candidates_drawn_uniformly(made, tokenizer):
    rows, directory = made
    table, _ = load_table(directory, rows, tokenizer)
    texts = len(rows.texts[0])
    drawn = np.stack([draw(table, texts, 0, 3, v) for v in range(1, 3001)])
    begin = table.text_words[3 * texts]
    counts = np.diff(table.word_candidates)[begin : begin + drawn.shape[1]]
    assert (counts > 0).any()
    for word, count in enumerate(counts):
        chosen = drawn[:, word][drawn[:, word] >= 0] - table.word_candidates[begin + word]
        if count == 0:
            assert len(chosen) == 0
            continue
        assert abs(len(chosen) / 3000 - PROBABILITY) < 0.05
        times = np.bincount(chosen, minlength=count)
        assert len(times) == count
        assert abs(times - len(chosen) / count).max() < 6 * np.sqrt(len(chosen) / count)


def test_both_texts_of_a_pair_vary_and_independently(pairs, tokenizer):
    # the original code writes every variant of B beside the last variant of A
    rows, directory = pairs
    augmented = load_augmented(directory, rows, tokenizer, 64, 0)
    row = max(range(len(rows.texts)), key=lambda i: min(map(len, rows.texts[i])))
    variants = variant_texts(dataclasses.replace(augmented, variants=30), rows, tokenizer, row)
    first, second = ({texts[side] for texts in variants} for side in (0, 1))
    assert len(first) > 20
    assert len(second) > 20
    table = augmented.table
    size = np.diff(table.text_words)[2 * row]
    drawn = np.stack([draw(table, 2, 0, row, v) >= 0 for v in range(1, 2001)]).astype(float)
    a, b = drawn[:, :size].mean(axis=1), drawn[:, size:].mean(axis=1)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.1


def test_lengths_are_those_of_the_longest_variant(made, tokenizer):
    rows, directory = made
    for max_length in (10, 64):
        augmented = load_augmented(directory, rows, tokenizer, max_length, 0)
        assert augmented.lengths.shape == (N * VARIANTS,)
        many = dataclasses.replace(augmented, variants=200)
        real = many.batch(np.arange(len(many)), max_length).attention_mask.sum(axis=1).reshape(N, 200)
        bound = augmented.lengths.reshape(N, VARIANTS)
        np.testing.assert_array_equal(bound[:, 0], real[:, 0])
        assert (bound[:, 1:] >= real.max(axis=1)[:, None]).all()
        assert augmented.lengths.max() <= max_length
    with pytest.raises(ValueError, match="tokens does not fit into 4"):
        augmented.batch(np.arange(len(augmented)), 4)


@pytest.mark.parametrize("pair", [False, True], ids=["one text", "pair"])
@pytest.mark.parametrize("dtype", [np.int32, np.float32], ids=["classes", "numbers"])
def test_all_four_kinds_of_task_keep_their_labels(tokenizer, model, tmp_path, pair, dtype):
    rows = make_rows(3, pair, labels=np.array([1, 0, 1], dtype))
    build(tmp_path / "out", rows, tokenizer, model, variants=2)
    augmented = load_augmented(tmp_path / "out", rows, tokenizer, 32, 0)
    batch = augmented.batch(np.array([5, -1, 0, 2]), 32)
    assert batch.labels.tolist() == [1, 0, 1, 0]
    assert batch.labels.dtype == dtype
    unlabelled = dataclasses.replace(rows, labels=None)
    labels = load_augmented(tmp_path / "out", unlabelled, tokenizer, 32, 0).labels
    assert (labels.tolist(), labels.dtype) == ([0, 0, 0], dtype)


def test_filler_rows_have_no_token_label_or_weight(made, tokenizer):
    rows, directory = made
    augmented = load_augmented(directory, rows, tokenizer, 32, 0)
    batch = augmented.batch(np.array([-1, 4, -1], np.int32), 32)
    alone = augmented.batch(np.array([4]), 32)
    assert batch.example_mask.tolist() == [0, 1, 0]
    np.testing.assert_array_equal(batch.input_ids[1], alone.input_ids[0])
    for name in ("attention_mask", "token_type_ids", "labels"):
        assert not getattr(batch, name)[[0, 2]].any()
    assert (batch.input_ids[[0, 2]] == tokenizer.pad_token_id).all()
    assert not augmented.batch(np.array([-1]), 32).attention_mask.any()


def test_training_reads_every_variant_once_an_epoch(made, tokenizer):
    rows, directory = made
    augmented = load_augmented(directory, rows, tokenizer, 64, 0)
    batches = list(train_batches(augmented, 8, bucket_lengths(64), 0, 0, 8))
    seen = sorted(
        tuple(ids[ids != 0]) for b in batches for ids, kept in zip(b.input_ids, b.example_mask, strict=True) if kept
    )
    every = augmented.batch(np.arange(len(augmented)), 64).input_ids
    assert seen == sorted(tuple(ids[ids != 0]) for ids in every)


def test_a_batch_of_32_rows_of_30_words_is_made_quickly(tokenizer, model, tmp_path):
    rows = dataclasses.replace(make_rows(32), texts=[("the film was good very " * 6,)] * 32)
    build(tmp_path / "out", rows, tokenizer, model, max_length=48)
    augmented = load_augmented(tmp_path / "out", rows, tokenizer, 48, 0)
    times = []
    for v in range(5):
        start = time.perf_counter()
        augmented.batch(np.arange(32) * 5 + v, 48)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.05, "ten times what it takes on an idle core"


def test_texts_are_cut_as_the_tokenizer_cuts_them(tokenizer):
    sizes = np.array(list(itertools.product(range(1, 14), repeat=2)))
    texts = [(" ".join(["the"] * a), " ".join(["a"] * b)) for a, b in sizes]
    for room in (4, 5, 9, 10, 30):
        encoded = tokenizer(
            [a for a, _ in texts], [b for _, b in texts], truncation="longest_first", max_length=room + 3
        )
        ids = [tokenizer.convert_tokens_to_ids(word) for word in ("the", "a")]
        expected = [[row.count(id_) for id_ in ids] for row in encoded["input_ids"]]
        np.testing.assert_array_equal(cut_longest_first(sizes, room), expected)


def test_candidates_of_other_rows_or_another_vocabulary_are_refused(made, tokenizer, tmp_path):
    rows, directory = made
    with pytest.raises(InputError, match="made from other rows than the training rows"):
        load_augmented(directory, dataclasses.replace(rows, fingerprint="other"), tokenizer, 32, 0)
    other = make_tokenizer(tmp_path, (*VOCABULARY, "more"))
    with pytest.raises(InputError, match="made with another vocabulary"):
        load_augmented(directory, rows, other, 32, 0)
    with pytest.raises(InputError, match=r"no augmentation\.json in it"):
        load_augmented(tmp_path, rows, tokenizer, 32, 0)


def test_other_candidates_are_other_rows(made, tokenizer, tmp_path):
    rows, directory = made
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    before = [load_augmented(path, rows, tokenizer, 32, 0).fingerprint for path in (directory, copy)]
    assert before[0] == before[1]
    table, _ = load_table(copy, rows, tokenizer)
    candidate_table.save_part(copy, 0, dataclasses.replace(table, candidates=table.candidates[::-1].copy()))
    assert load_augmented(copy, rows, tokenizer, 32, 0).fingerprint != before[0]


SST2 = 'sentence\tlabel\na "good" film , but slow\t1\n"dull\t0\nwalking slowly is not fine .\t1\n'
MRPC = (
    "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
    '1\t10\t11\t" The film was good .\tThe actor said " the film was great "\r\n'
    "0\t12\t13\tWalking is odd\tthe music was loud .\r\n"
)
COLA = "gj04\t1\t\tThe actor talked slowly .\ngj04\t0\t*\tThe story felt walk the film .\n"


@pytest.mark.parametrize(("name", "content"), [("sst2", SST2), ("mrpc", MRPC), ("cola", COLA)])
def test_the_variants_file_has_the_columns_of_the_training_file_and_reads_back(
    tokenizer, model, tmp_path, name, content
):
    # the original code writes quotes quoted and reads them raw
    task = get_task(name)
    train = tmp_path / "train.tsv"
    train.write_bytes(content.encode())
    rows = read_rows(task, DataSource(data=str(tmp_path)), "train")
    build(tmp_path / "out", rows, tokenizer, model, variants=4)
    augmented = load_augmented(tmp_path / "out", rows, tokenizer, 32, 0)
    (tmp_path / "new").mkdir()
    path = tmp_path / "new" / "train.tsv"
    write_variants(path, augmented, rows, tokenizer, train, task.text_columns, task.headerless_columns)
    again = read_rows(task, DataSource(data=str(path.parent)), "train")
    texts = [texts for i in range(len(rows.texts)) for texts in variant_texts(augmented, rows, tokenizer, i)]
    assert again.texts == texts
    np.testing.assert_array_equal(again.labels, np.repeat(rows.labels, 4))
    before, after = (text.decode("utf-8-sig").splitlines() for text in (content.encode(), path.read_bytes()))
    header = 0 if task.headerless_columns else 1
    assert after[:header] == before[:header]
    columns = before[0].split("\t") if header else list(task.headerless_columns)
    for i, line in enumerate(after[header:]):
        for column, new, old in zip(columns, line.split("\t"), before[header + i // 4].split("\t"), strict=True):
            assert column in task.text_columns or new == old
    assert any('"' in row for texts in rows.texts for row in texts) == (name != "cola")


def test_rows_that_were_left_out_have_no_variants_and_the_others_their_own_labels(tokenizer, model, tmp_path):
    train = tmp_path / "train.tsv"
    lines = ["1\t2\t3\tthe film was good ?\tis the film good ?\t1", "4\t5\t6", "7\t8\t9\twas the music loud ?\t\t0"]
    train.write_text("\n".join(["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", *lines]) + "\n")
    rows = read_rows(get_task("qqp"), DataSource(data=str(tmp_path)), "train")
    build(tmp_path / "out", rows, tokenizer, model, variants=3)
    augmented = load_augmented(tmp_path / "out", rows, tokenizer, 32, 0)
    path = tmp_path / "variants.tsv"
    write_variants(path, augmented, rows, tokenizer, train, get_task("qqp").text_columns)
    written = [line.split("\t") for line in path.read_text().splitlines()[1:]]
    assert [(row[0], row[5]) for row in written] == [("1", "1")] * 3 + [("7", "0")] * 3
    assert written[3][3:5] == ["was the music loud ?", ""]


def test_variants_of_a_quoted_file_are_quoted(tokenizer, model, tmp_path):
    train, task = tmp_path / "train.tsv", get_task("classification")
    train.write_text('text\tlabel\n"was the ""music""\nloud ?"\tyes\nthe music was loud\tno\n')
    rows = read_rows(task, DataSource(data=str(tmp_path)), "train")
    build(tmp_path / "out", rows, tokenizer, model, variants=3)
    augmented = load_augmented(tmp_path / "out", rows, tokenizer, 32, 0)
    (tmp_path / "variants").mkdir()
    write_variants(tmp_path / "variants" / "train.tsv", augmented, rows, tokenizer, train, ("text",))
    written = read_rows(task, DataSource(data=str(tmp_path / "variants")), "train")
    assert [*written.texts[::3]] == [*rows.texts] == [('was the "music"\nloud ?',), ("the music was loud",)]
    assert written.labels_or_zeros.tolist() == [1, 1, 1, 0, 0, 0]


def test_a_variants_file_appears_whole_or_not_at_all(tokenizer, model, tmp_path, monkeypatch):
    train = tmp_path / "train.tsv"
    train.write_bytes(SST2.encode())
    rows = read_rows(get_task("sst2"), DataSource(data=str(tmp_path)), "train")
    build(tmp_path / "out", rows, tokenizer, model, variants=4)
    augmented = load_augmented(tmp_path / "out", rows, tokenizer, 32, 0)
    written = []

    def interrupted(*args):
        written.append(args)
        if len(written) == 2:
            raise KeyboardInterrupt
        return variant_texts(*args)

    with monkeypatch.context() as patch:
        patch.setattr("tinybert_jax.data.augmentation.variants.variant_texts", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_variants(tmp_path / "variants.tsv", augmented, rows, tokenizer, train, ("sentence",))
    assert {path.name for path in tmp_path.iterdir()} == {"out", "train.tsv"}
    write_variants(tmp_path / "variants.tsv", augmented, rows, tokenizer, train, ("sentence",))
    assert {path.name for path in tmp_path.iterdir()} == {"out", "train.tsv", "variants.tsv"}


def test_a_tokenizer_that_cuts_on_the_left_is_refused_before_anything_is_computed(
    made, tokenizer, monkeypatch, tmp_path
):
    rows, directory = made
    monkeypatch.setattr(tokenizer, "truncation_side", "left")
    with pytest.raises(InputError, match="the tokenizer's truncation_side is 'left': set it to 'right'"):
        load_augmented(directory, rows, tokenizer, 32, 0)
    monkeypatch.setattr(build_module, "load_hf", lambda _: (BertConfig(), {"cls": {}, "encoder": {}}))
    monkeypatch.setattr(build_module, "fingerprint", lambda _: "")
    monkeypatch.setattr(build_module, "load_tokenizer", lambda *_: tokenizer)
    with pytest.raises(InputError, match="the tokenizer's truncation_side is 'left'"):
        build_module.build("model", "sst2", DataSource(data=str(tmp_path)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_variants_are_written_only_beside_a_tsv(made, tokenizer, tmp_path):
    rows, directory = made
    augmented = load_augmented(directory, rows, tokenizer, 32, 0)
    with pytest.raises(InputError, match=r"train\.csv: not a \.tsv"):
        write_variants(tmp_path / "a.tsv", augmented, rows, tokenizer, tmp_path / "train.csv", ("sentence",))
