"""More pairs from few: which texts they have, and which rows a task reads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import tinybert_jax as tb
from tinybert_jax.data import rows as rows_of_tasks
from tinybert_jax.data.recombine import recombine
from tinybert_jax.data.rows import read_rows, recombines
from tinybert_jax.settings.tasks import get_task
from tinybert_jax.tasks.kinds import load_split

PAIRS = get_task("stsb")
# texts of four subjects, each in several rows
TOPICS = ("a cat sleeps on the mat", "two planes land at night", "prices of oil rise", "una niña come pan")
ROWS = [(f"{TOPICS[i % 4]}, says number {i}", f"number {i} told us that {TOPICS[i % 4]}") for i in range(24)]


def write(path: Path, rows: list[tuple[str, str]], **more: str) -> Path:
    lines = [{"sentence1": a, "sentence2": b, "score": 2.5, **more} for a, b in rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


@pytest.fixture
def source(tmp_path: Path) -> tb.DataSource:
    train, dev = (str(write(tmp_path / name, ROWS)) for name in ("train.jsonl", "dev.jsonl"))
    return tb.DataSource(train=train, dev=dev)


def test_each_pair_is_new_and_made_once() -> None:
    made = recombine(ROWS, 100)
    assert len(made) == len(set(made)) == 100
    assert not set(made) & set(ROWS)
    assert recombine(ROWS, 100) == made
    assert recombine(ROWS, 100, seed=1) != made


def test_pairs_are_similar_or_random_or_a_text_and_a_part_of_its_words() -> None:
    made = recombine(ROWS, 240)
    firsts, seconds = (set(side) for side in zip(*ROWS, strict=True))
    crossed = [pair for pair in made if pair[0] in firsts and pair[1] in seconds]
    alike = [any(topic in first and topic in second for topic in TOPICS) for first, second in crossed]
    assert 0.5 < np.mean(alike) < 0.8  # of the similar half all, and a quarter of the random half
    others = [sorted(pair, key=len) for pair in made if pair not in crossed]
    assert 80 <= len(others) <= 100  # a third, and what similar and random pairs have in common
    for short, whole in others:
        assert whole in firsts | seconds
        words = iter(whole.split())
        assert all(word in words for word in short.split()), "in their order"


@pytest.mark.parametrize(
    ("rows", "crossed"),
    [
        (ROWS[:3], 6),
        (ROWS[:1], 0),
        ([*ROWS[:3], *ROWS[:3]], 6),  # the same rows again
        ([("?", "!"), ("我喜欢猫", "😀"), ("", "a")], 6),  # nothing that is a word in English
    ],
)
def test_there_are_no_more_pairs_than_the_texts_make(rows: list[tuple[str, str]], crossed: int) -> None:
    made = recombine(rows, 10000)
    assert len(made) == len(set(made)) < 10000
    firsts, seconds = (set(side) for side in zip(*rows, strict=True))
    assert sum(first in firsts and second in seconds for first, second in made) == crossed


def test_recombined_rows_follow_the_labelled_ones(source: tb.DataSource) -> None:
    plain = read_rows(PAIRS, source, "train")
    more = read_rows(PAIRS, dataclasses.replace(source, recombine_to=40), "train")
    assert len(more.texts) == 40
    assert more.texts[:24] == plain.texts
    assert more.labels is not None
    assert np.isfinite(more.labels[:24]).all()
    assert np.isnan(more.labels[24:]).all()
    assert more.fingerprint != plain.fingerprint
    assert len(read_rows(PAIRS, dataclasses.replace(source, recombine_to=40), "dev").texts) == 24
    enough = read_rows(PAIRS, dataclasses.replace(source, recombine_to=24), "train")
    assert (enough.texts, enough.fingerprint) == (plain.texts, plain.fingerprint)


def test_few_pairs_are_recombined_and_others_are_not(
    source: tb.DataSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert recombines(PAIRS, source) == (dataclasses.replace(source, recombine_to=5000), 4976, True)
    for number, made in ((0, 0), (20, 0), (30, 6)):
        chosen = dataclasses.replace(source, recombine_to=number)
        assert recombines(PAIRS, chosen) == (chosen, made, made > 0)
    more = str(write(tmp_path / "more.jsonl", ROWS[:10]))
    unlabelled = dataclasses.replace(source, unlabelled=(more,))
    assert recombines(PAIRS, unlabelled) == (dataclasses.replace(unlabelled, recombine_to=5000), 4966, True)
    with_ids = dataclasses.replace(source, id_column="sentence1")
    assert recombines(PAIRS, with_ids) == (with_ids, 0, False)
    for task in ("sst2", "embedding", "ranking", "squad"):  # not pairs, or not with a label for each
        assert recombines(get_task(task), source) == (source, 0, False)
    monkeypatch.setattr(rows_of_tasks, "FEW_PAIRS", 24)
    assert recombines(PAIRS, source) == (source, 0, False)
    asked = dataclasses.replace(source, recombine_to=30)
    assert recombines(PAIRS, asked) == (asked, 6, False)  # more, although they are not few


def test_what_cannot_be_recombined_is_refused(source: tb.DataSource, tmp_path: Path) -> None:
    path = tmp_path / "single.tsv"
    path.write_text("text\tlabel\na\tgood\nb\tbad\n")
    single = tb.DataSource(train=str(path), dev=str(path), recombine_to=10)
    with pytest.raises(tb.InputError, match="the rows are single texts: leave out --recombine-to"):
        read_rows(get_task("classification"), single, "train")
    for task in ("embedding", "ranking", "squad"):
        with pytest.raises(tb.InputError, match=f"task '{task}' has no .*: leave out --recombine-to"):
            load_split(get_task(task), dataclasses.replace(source, recombine_to=10), "train", None, 16, None)
    with pytest.raises(tb.InputError, match="recombine_to is -1; it must be a number of rows, or 0 for none"):
        dataclasses.replace(source, recombine_to=-1)
    with pytest.raises(tb.InputError, match="recombine_to makes rows without ids: leave it out, or id_column"):
        dataclasses.replace(source, recombine_to=9, id_column="id")
    with pytest.raises(tb.InputError, match="for stages with a teacher alone: leave out --recombine-to"):
        tb.Experiment("stsb", dataclasses.replace(source, recombine_to=9), "bert", (tb.Stage("supervised"),))
