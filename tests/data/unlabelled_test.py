"""Rows without labels, and a dev set that is split off the training rows."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import distillation, logged, write_scored_reviews

import tinybert_jax as tb
from tinybert_jax.data.augmentation.build import build
from tinybert_jax.data.rows import read_rows
from tinybert_jax.inference.evaluate import evaluate
from tinybert_jax.settings.tasks import get_task
from tinybert_jax.tasks.kinds import load_split
from tinybert_jax.training.inputs import load_inputs

CLASSES, NUMBERS = get_task("classification"), get_task("regression")
TEXTS = ["a tasty bag", "an awful bag", "a fine bag"]


@pytest.fixture
def unlabelled(tmp_path: Path) -> tuple[str, ...]:
    """The same three texts in every kind of file."""
    (tmp_path / "u.txt").write_text("\n".join(TEXTS) + "\n\n")
    (tmp_path / "u.tsv").write_text("\n".join(["text\tsource", *(f"{text}\tweb" for text in TEXTS)]) + "\n")
    (tmp_path / "u.csv").write_text("\n".join(["text", *TEXTS]) + "\n")
    (tmp_path / "u.jsonl").write_text("".join(json.dumps({"text": text, "label": "good"}) + "\n" for text in TEXTS))
    return tuple(str(tmp_path / f"u.{suffix}") for suffix in ("txt", "tsv", "csv", "jsonl"))


def test_columns_without_a_name_are_not_read(reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name, header, start in (("one.csv", ",text", "{},"), ("two.csv", ",,text", "{},{},")):
        rows = [start.format(number, number) + text for number, text in enumerate(TEXTS)]
        (tmp_path / name).write_text("\n".join([header, *rows]) + "\n")
        source = tb.DataSource(data=str(reviews), unlabelled=(str(tmp_path / name),))
        assert [text for (text,) in read_rows(CLASSES, source, "train").texts[-3:]] == TEXTS
    assert capsys.readouterr().err == ""


def test_rows_without_labels_follow_the_labelled_ones(reviews: Path, unlabelled: tuple[str, ...]) -> None:
    """A label in a file of theirs is not read."""
    labelled = read_rows(CLASSES, tb.DataSource(data=str(reviews)), "train")
    both = read_rows(CLASSES, tb.DataSource(data=str(reviews), unlabelled=unlabelled), "train")
    count = len(labelled.texts)
    assert both.texts == [*labelled.texts, *([(text,) for text in TEXTS] * 4)]
    assert both.label_names == labelled.label_names
    assert labelled.labels is not None
    assert both.labels is not None
    np.testing.assert_array_equal(both.labels, [*labelled.labels, *[-1] * 12])
    assert both.fingerprint != labelled.fingerprint
    assert len(both.lines) == count + 12


def test_a_suffix_may_be_in_capitals(unlabelled: tuple[str, ...], tmp_path: Path) -> None:
    train = str(tmp_path / "train.tsv")
    Path(train).write_text("text\tlabel\na\tgood\nb\tbad\n")
    for name in unlabelled:
        Path(name).rename(capitals := Path(name).with_suffix(Path(name).suffix.upper()))
        rows = read_rows(CLASSES, tb.DataSource(train=train, unlabelled=(str(capitals),)), "train")
        assert rows.texts[2:] == [(text,) for text in TEXTS]


def test_a_missing_number_is_nan(reviews: Path, unlabelled: tuple[str, ...], tmp_path: Path) -> None:
    write_scored_reviews(tmp_path, reviews)
    rows = read_rows(NUMBERS, tb.DataSource(data=str(tmp_path), unlabelled=unlabelled[:1]), "train")
    assert rows.labels is not None
    assert np.isnan(rows.labels).nonzero()[0].tolist() == [len(rows.texts) - i for i in (3, 2, 1)]


@pytest.mark.long
@pytest.mark.parametrize("labelled", [True, False])
def test_a_student_learns_from_them_in_both_stages(
    labelled: bool, teacher: Path, reviews: Path, tmp_path: Path
) -> None:
    """All training texts are unlabelled, without a label for any, or beside the same rows with labels."""
    texts = [line.split("\t")[0] for line in (reviews / "train.tsv").read_text().splitlines()[1:]]
    (tmp_path / "u.txt").write_text("\n".join(texts) + "\n")
    train = str(reviews / "train.tsv") if labelled else None
    source = tb.DataSource(train=train, dev=str(reviews / "dev.tsv"), unlabelled=(str(tmp_path / "u.txt"),))
    experiment = distillation(teacher, Path("2x16"), reviews, source=source)
    last = dataclasses.replace(experiment.stages[1], objective=tb.Prediction(hard_weight=0.5 if labelled else 0.0))
    experiment = dataclasses.replace(experiment, stages=(experiment.stages[0], last))
    inputs = load_inputs(experiment)
    assert len(inputs.train) == len(texts) * (1 + labelled)
    result = tb.run(experiment, tmp_path / "run")
    assert result.scores["accuracy"] > 0.8
    hard = [line["hard"] for line in logged(tmp_path / "run") if "hard" in line]
    assert all(value > 0 if labelled else value == 0 for value in hard)


def test_where_nothing_can_be_learnt_from_them_they_are_refused(
    teacher: Path, pretrained: Path, reviews: Path, unlabelled: tuple[str, ...], tmp_path: Path
) -> None:
    source = tb.DataSource(data=str(reviews), unlabelled=unlabelled)
    experiment = distillation(teacher, Path("2x16"), reviews, source=source)
    for change, message in (
        ({"stages": (tb.Stage(tb.Supervised()),)}, "rows without labels are for stages with a teacher alone"),
        ({"augmented": "x"}, "rows without labels have no variants: leave out --augmented, or --unlabelled"),
    ):
        with pytest.raises(tb.InputError, match=message):
            dataclasses.replace(experiment, **change)
    alone = tb.DataSource(dev=str(reviews / "dev.tsv"), unlabelled=unlabelled)
    for objective in (tb.Prediction(hard_weight=0.5), tb.Patient(hard_weight=tb.Ramp(0.0, 0.5))):
        with pytest.raises(tb.InputError, match=r"no training row has a label.*: leave out --hard-weight, or add"):
            dataclasses.replace(experiment, source=alone, stages=(tb.Stage(objective),))
    for objective in (tb.Prediction(), tb.Patient()):  # the default of Patient is for rows with and without labels
        dataclasses.replace(experiment, source=alone, stages=(tb.Stage(objective),))
    with pytest.raises(tb.InputError, match="rows without labels are no split that can be scored"):
        evaluate(str(teacher), "classification", source, "train")
    with pytest.raises(tb.InputError, match="rows without labels have no variants: leave out --unlabelled"):
        build(str(pretrained), "classification", source, tmp_path / "out")
    with pytest.raises(tb.InputError, match="task 'ner' has no texts in columns: leave out --unlabelled"):
        load_split(get_task("ner"), tb.DataSource(train="a", dev_share=0.1), "train", None, 16)
    (tmp_path / "empty.txt").write_text("\n")
    for file, message in (
        (tmp_path / "empty.txt", r"empty.txt:1: the file is empty: give one with a text a line"),
        (tmp_path / "none.txt", r"none.txt: cannot be read \(No such file or directory\)"),
        (tmp_path / "u.xml", r"u.xml: (unknown kind of file|cannot be read)"),
    ):
        with pytest.raises(tb.InputError, match=message):
            read_rows(CLASSES, tb.DataSource(data=str(reviews), unlabelled=(str(file),)), "train")
    pairs = tb.DataSource(unlabelled=unlabelled[:1], dev=str(reviews / "dev.tsv"), text_columns=("a", "b"))
    with pytest.raises(tb.InputError, match=r"u.txt: a .txt has one text a line, and no other column"):
        read_rows(CLASSES, pairs, "train", ("bad", "good"))


def split(reviews: Path, **changes: Any) -> tuple[list[str], list[str]]:
    source = tb.DataSource(**{"train": str(reviews / "train.tsv"), "dev_share": 0.25} | changes)
    train, dev = (read_rows(CLASSES, source, part) for part in ("train", "dev"))
    assert train.fingerprint != dev.fingerprint
    return [text for (text,) in train.texts], [text for (text,) in dev.texts]


def test_a_dev_share_is_split_off_by_its_seed(reviews: Path, tmp_path: Path) -> None:
    texts = [line.split("\t")[0] for line in (reviews / "train.tsv").read_text().splitlines()[1:]]
    train, dev = split(reviews)
    assert sorted(train + dev) == sorted(texts)
    assert not set(train) & set(dev), "equal texts are on one side"
    assert len(set(dev)) == round(0.25 * len(set(texts)))
    assert split(reviews) == (train, dev)
    assert set(split(reviews, dev_seed=1)[1]) != set(dev)
    more = tmp_path / "train.tsv"
    more.write_text((reviews / "train.tsv").read_text() + "a text that is new\tgood\n")
    assert len(set(split(reviews, train=str(more))[1]) ^ set(dev)) <= 2, "a new row moves few others"


def test_a_class_whose_rows_are_all_in_the_dev_set_is_known(tmp_path: Path) -> None:
    rows = [f"text {i}\t{'rare' if i == 0 else 'ab'[i % 2]}\n" for i in range(20)]
    (tmp_path / "train.tsv").write_text("text\tlabel\n" + "".join(rows))
    in_dev = set()
    for seed in range(8):
        source = tb.DataSource(train=str(tmp_path / "train.tsv"), dev_share=0.25, dev_seed=seed)
        train, dev = (read_rows(CLASSES, source, part) for part in ("train", "dev"))
        assert train.label_names == dev.label_names == ("a", "b", "rare")
        in_dev.add(("text 0",) in dev.texts)
    assert in_dev == {True, False}


@pytest.mark.long
def test_a_run_with_a_dev_share_is_scored_on_it(teacher: Path, reviews: Path, tmp_path: Path) -> None:
    source = tb.DataSource(train=str(reviews / "train.tsv"), dev_share=0.3)
    experiment = distillation(teacher, Path("2x16"), reviews, source=source)
    result = tb.run(experiment, tmp_path / "run")
    assert result.scores == evaluate(str(result.directory), "classification", source)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dev_share": 1.0}, r"dev_share is 1.0; it must be above 0 and below 1"),
        ({"dev_share": 0.1, "dev": "dev.tsv"}, "dev_share is for training rows without a dev set"),
        ({"dev_seed": -1}, "dev_seed is -1"),
    ],
)
def test_shares_that_cannot_be_are_refused(changes: dict[str, Any], message: str, reviews: Path) -> None:
    with pytest.raises(tb.InputError, match=message):
        tb.DataSource(train="train.tsv", **changes)
    with pytest.raises(tb.InputError, match=r"holds the dev set dev.tsv: leave out --dev-share"):
        read_rows(CLASSES, tb.DataSource(data=str(reviews), dev_share=0.1), "train")
    with pytest.raises(tb.InputError, match=r"no dev file is given: add --dev FILE, or --dev-share 0.1"):
        read_rows(CLASSES, tb.DataSource(train=str(reviews / "train.tsv")), "dev")


def test_texts_alone_are_told_how_to_get_a_dev_set() -> None:
    for more in ({}, {"dev_share": 0.1}):
        with pytest.raises(tb.InputError, match=r"split off from --unlabelled rows: add --dev .* --label-column pred"):
            tb.DataSource(unlabelled=("texts.txt",), **more)


def test_ids_occur_once(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text,label\n7,a,good\n8,b,bad\n7,c,bad\n")
    source = tb.DataSource(train=str(tmp_path / "a.csv"), id_column="id")
    with pytest.raises(tb.InputError, match=r"a.csv:4: the id '7' is that of line 2 too"):
        read_rows(CLASSES, source, "train")
    (tmp_path / "b.jsonl").write_text('{"id": 7, "text": "a", "label": 1}\n{"id": "x", "text": "b", "label": 0}\n')
    rows = read_rows(CLASSES, dataclasses.replace(source, train=str(tmp_path / "b.jsonl")), "train")
    assert rows.ids == ["7", "x"]
