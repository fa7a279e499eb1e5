"""Batches are the shards' sequences, and masked exactly where masking is asked for; the cache and its checks."""

import dataclasses
import gzip

import numpy as np
import pytest
from sequences_test import DOCUMENTS, join, make_tokenizer, read_back

from tinybert_jax.batch import Examples
from tinybert_jax.data.batches import bucket_lengths, train_batches
from tinybert_jax.data.corpus import corpus, shards, text
from tinybert_jax.data.corpus.corpus import Corpus, build, load, mask_tokens, prepare
from tinybert_jax.errors import InputError
from tinybert_jax.settings.sources import CorpusSource

MAX_LENGTH = 24


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("vocab"))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(join(DOCUMENTS))
    return path


@pytest.fixture(autouse=True)
def _small_units(monkeypatch):
    monkeypatch.setattr(text, "UNIT_BYTES", 2000)  # several shards


@pytest.fixture
def made(file, tokenizer):
    return prepare(CorpusSource((str(file),), pairs=True), tokenizer, MAX_LENGTH, 0)


def everything(corpus, epoch=0):
    return corpus.batch(np.arange(len(corpus)), MAX_LENGTH, epoch)


def test_corpus_is_what_a_stage_trains_on(made):
    assert isinstance(made, Examples)
    assert len(list(train_batches(made, 8, bucket_lengths(MAX_LENGTH), 0, 0, 5))) == 5


def test_batches_hold_the_records(made, cache_dir):
    (folder,) = (cache_dir / "corpus").iterdir()
    records = [r for path in sorted(folder.glob("*.array_record")) for r in read_back(path)]
    batch = everything(made)
    assert len(records) == len(made) > 100
    assert len(list(folder.glob("*.array_record"))) > 3
    for i, (pair_start, *ids) in enumerate(records):
        n = len(ids)
        assert n == made.lengths[i]
        assert batch.input_ids[i].tolist() == ids + [0] * (MAX_LENGTH - n)
        assert batch.attention_mask[i].tolist() == [1] * n + [0] * (MAX_LENGTH - n)
        types = [0] * pair_start + [1] * (n - pair_start) + [0] * (MAX_LENGTH - n)
        assert batch.token_type_ids[i].tolist() == types
    assert made.lengths.dtype == np.uint16


def test_filler_rows_count_nowhere(made):
    masked = dataclasses.replace(made, masking_probability=0.5)
    batch = masked.batch(np.array([3, -1]), MAX_LENGTH, 0)
    assert batch.example_mask.tolist() == [1, 0]
    assert not batch.attention_mask[1].any()
    assert (batch.labels[1] == -1).all()


def test_a_row_that_is_too_long_is_refused(made):
    with pytest.raises(ValueError, match="does not fit into 4"):
        made.batch(np.array([int(made.lengths.argmax())]), 4, 0)


def test_probability_0_masks_nothing(made, tokenizer):
    # the original code masked at least one token of every sequence
    assert made.masking_probability == 0
    batch = everything(made)
    assert not (batch.input_ids == tokenizer.mask_token_id).any()
    assert (batch.labels == -1).all()
    ids = np.arange(20)
    masked, labels = mask_tokens(ids, np.ones(20, bool), ids, 4, 0.0, np.random.default_rng(0))
    assert masked.tolist() == ids.tolist()
    assert (labels == -1).all()


def test_masking_has_the_rates_of_bert():
    n, vocabulary, special = 200_000, 1000, 5
    ordinary = np.arange(vocabulary) >= special
    random = np.random.default_rng(0)
    ids = random.integers(0, vocabulary, n)
    masked, labels = mask_tokens(ids, ordinary, np.flatnonzero(ordinary), 4, 0.15, random)
    chosen = labels >= 0
    assert (labels[chosen] == ids[chosen]).all()
    assert (masked[~chosen] == ids[~chosen]).all()
    assert not chosen[ids < special].any()
    assert chosen[ids >= special].mean() == pytest.approx(0.15, abs=0.003)
    to_mask, kept = masked[chosen] == 4, masked[chosen] == ids[chosen]
    assert to_mask.mean() == pytest.approx(0.8, abs=0.01)
    assert kept.mean() == pytest.approx(0.1, abs=0.01)
    others = masked[chosen][~to_mask & ~kept]
    assert others.min() >= special
    assert len(np.unique(others)) > 900
    assert masked.dtype == labels.dtype == np.int32


def test_masking_depends_on_seed_epoch_and_row_and_on_nothing_else(made):
    masked = dataclasses.replace(made, masking_probability=0.3)
    batch = everything(masked)
    again = masked.batch(np.array([7, 5]), MAX_LENGTH + 3, 0)
    for field in ("input_ids", "labels"):
        whole, part = getattr(batch, field), getattr(again, field)
        assert part[:, :MAX_LENGTH].tolist() == whole[[7, 5]].tolist()
    assert (everything(masked, epoch=1).labels != batch.labels).any()
    assert (everything(dataclasses.replace(masked, seed=1)).labels != batch.labels).any()
    original = everything(made).input_ids
    assert (np.where(batch.labels >= 0, batch.labels, batch.input_ids) == original).all()


def test_masking_needs_a_mask_token(made):
    without = dataclasses.replace(made, recipe=made.recipe | {"mask_token_id": None})
    with pytest.raises(InputError, match="no mask token"):
        dataclasses.replace(without, masking_probability=0.1)


def test_shards_are_built_once(file, tokenizer, monkeypatch):
    source = CorpusSource((str(file),))
    first = prepare(source, tokenizer, MAX_LENGTH, 0)
    monkeypatch.setattr(corpus, "build_shards", None)  # building again would fail
    second = prepare(source, tokenizer, MAX_LENGTH, 0)
    assert first.fingerprint == second.fingerprint
    assert everything(first).input_ids.tolist() == everything(second).input_ids.tolist()


def test_text_and_every_option_change_the_fingerprint(file, tokenizer, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(file.read_text() + "the film\n")
    source = CorpusSource((str(file),))
    made = [
        prepare(source, tokenizer, MAX_LENGTH, 0),
        prepare(source, tokenizer, MAX_LENGTH, 1),
        prepare(source, tokenizer, MAX_LENGTH + 1, 0),
        prepare(source, make_tokenizer(tmp_path, ["more"]), MAX_LENGTH, 0),
        prepare(dataclasses.replace(source, files=(str(other),)), tokenizer, MAX_LENGTH, 0),
        prepare(dataclasses.replace(source, pairs=True), tokenizer, MAX_LENGTH, 0),
        prepare(dataclasses.replace(source, one_document_per_line=True), tokenizer, MAX_LENGTH, 0),
        prepare(dataclasses.replace(source, short_sequence_probability=0.5), tokenizer, MAX_LENGTH, 0),
    ]
    assert len({corpus.fingerprint for corpus in made}) == len(made)


def test_neither_names_compression_nor_processes_change_anything(file, tokenizer, tmp_path):
    packed = tmp_path / "packed.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    plain = prepare(CorpusSource((str(file),)), tokenizer, MAX_LENGTH, 0)
    other = prepare(CorpusSource((str(packed),), processes=2), tokenizer, MAX_LENGTH, 0, tmp_path / "cache")
    assert plain.fingerprint == other.fingerprint


@pytest.mark.parametrize("damage", ["truncated", "flipped", "deleted", "lengths", "manifest"])
def test_damaged_shards_are_found_and_in_the_cache_built_again(file, tokenizer, cache_dir, damage):
    source = CorpusSource((str(file),))
    before = prepare(source, tokenizer, MAX_LENGTH, 0)
    (folder,) = (cache_dir / "corpus").iterdir()
    path = folder / {"lengths": "00001.lengths.npy", "manifest": shards.MANIFEST}.get(damage, "00001.array_record")
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if damage in ("truncated", "manifest") else data)
    with pytest.raises(InputError, match="build the shards again"):
        load(folder)
    after = prepare(source, tokenizer, MAX_LENGTH, 0)
    assert after.fingerprint == before.fingerprint
    assert everything(after).input_ids.tolist() == everything(before).input_ids.tolist()


def test_a_finished_directory_is_a_corpus(file, tokenizer, tmp_path, cache_dir):
    build(CorpusSource((str(file),)), tokenizer, MAX_LENGTH, 0, tmp_path / "out")
    made = prepare(CorpusSource((str(tmp_path / "out"),)), tokenizer, MAX_LENGTH + 1, 5)
    assert made.seed == 5
    assert made.fingerprint == load(tmp_path / "out").fingerprint
    assert not list(cache_dir.iterdir())
    assert isinstance(made, Corpus)


def test_a_directory_that_does_not_fit_is_refused(file, tokenizer, tmp_path):
    build(CorpusSource((str(file),)), tokenizer, MAX_LENGTH, 0, tmp_path / "out")
    source = CorpusSource((str(tmp_path / "out"),))
    with pytest.raises(InputError, match="another tokenizer"):
        prepare(source, make_tokenizer(tmp_path, ["more"]), MAX_LENGTH, 0)
    with pytest.raises(InputError, match="up to 24 tokens a sequence"):
        prepare(source, tokenizer, MAX_LENGTH - 1, 0)
    with pytest.raises(InputError, match="without pairs"):
        prepare(dataclasses.replace(source, pairs=True), tokenizer, MAX_LENGTH, 0)
    build(CorpusSource((str(file),), pairs=True), tokenizer, MAX_LENGTH, 0, tmp_path / "pairs")
    with pytest.raises(InputError, match="built of pairs: add --pairs"):
        prepare(CorpusSource((str(tmp_path / "pairs"),)), tokenizer, MAX_LENGTH, 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no corpus\.json"):
        prepare(CorpusSource((str(tmp_path / "empty"),)), tokenizer, MAX_LENGTH, 0)
