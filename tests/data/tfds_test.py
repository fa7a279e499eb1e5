"""Prepared TFDS sets become checked rows; what cannot serve is refused in one line."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from tinybert_jax.data.rows import read_rows
from tinybert_jax.data.tfds import tfds_records
from tinybert_jax.errors import InputError
from tinybert_jax.models.files.directory import load_config
from tinybert_jax.models.files.tokenizer import load_tokenizer
from tinybert_jax.settings.sources import DataSource
from tinybert_jax.settings.tasks import get_task
from tinybert_jax.tasks.kinds import load_split


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A prepared TFDS set `tiny_reviews` with the features of glue/sst2, and `tiny_records` in another format."""
    import tensorflow_datasets as tfds

    class TinyReviews(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            label = tfds.features.ClassLabel(names=["negative", "positive"])
            features = {"sentence": tfds.features.Text(), "label": label, "idx": np.int32}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))  # it shuffles

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples([1, 0, 1]),
                "validation": self._generate_examples([0, 1]),
                "test": self._generate_examples([-1] * 8),
                "partly": self._generate_examples([0, -1, 1]),
            }

        def _generate_examples(self, labels):
            for i, label in enumerate(labels):
                yield f"row {i}", {"sentence": f"Sätze {i}", "label": label, "idx": i}

    data_dir = tmp_path_factory.mktemp("tfds")
    tfds.disable_progress_bar()
    TinyReviews(data_dir=str(data_dir), file_format="array_record").download_and_prepare()
    other = data_dir / "tiny_records" / "1.0.0"
    other.mkdir(parents=True)
    for file in (data_dir / "tiny_reviews" / "1.0.0").glob("*.json"):
        (other / file.name).write_text(file.read_text())
    info = json.loads((other / "dataset_info.json").read_text()) | {"fileFormat": "tfrecord", "name": "tiny_records"}
    for split in info["splits"]:
        split["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    (other / "dataset_info.json").write_text(json.dumps(info))
    tfds.core.add_data_dir(data_dir)
    return data_dir


def test_rows_of_a_prepared_glue_set_come_in_the_order_of_its_files(prepared):
    """TFDS stores them shuffled; GLUE's server takes predictions in the order of its own."""
    stored = [int(record["idx"]) for record in tfds_records("tiny_reviews", "test")[1]]
    assert stored != sorted(stored)
    rows = read_rows(get_task("sst2"), DataSource(tfds="tiny_reviews"), "test")
    assert rows.texts == [(f"Sätze {i}",) for i in range(8)]


def test_a_prepared_tfds_set_is_read_by_name(prepared):
    source = DataSource(tfds="tiny_reviews")
    train, dev, test = (read_rows(get_task("sst2"), source, split) for split in ("train", "dev", "test"))
    assert train.texts == [("Sätze 0",), ("Sätze 1",), ("Sätze 2",)]
    assert (train.labels.tolist(), dev.labels.tolist(), test.labels) == ([1, 0, 1], [0, 1], None)
    assert read_rows(get_task("sst2"), source, "dev", ("POSITIVE", "NEGATIVE")).labels.tolist() == [1, 0]
    assert len({train.fingerprint, dev.fingerprint, test.fingerprint}) == 3
    chosen_columns = DataSource(tfds="tiny_reviews", text_columns=("sentence",))
    assert read_rows(get_task("classification"), chosen_columns, "train").label_names == ("negative", "positive")


def test_a_template_joins_features_and_says_classes_by_name(prepared):
    source = DataSource(tfds="tiny_reviews", text_template=("{sentence} ({label})", "{label}"), label_column="idx")
    rows = read_rows(get_task("regression"), source, "train")
    assert rows.texts == [(f"Sätze {i} ({name})", name) for i, name in enumerate(["positive", "negative", "positive"])]


def test_the_fingerprint_of_a_set_stays_that_of_earlier_versions(prepared):
    """It is in the keys of the cache and in experiment.json, which a resumed run compares."""
    train, test = (read_rows(get_task("sst2"), DataSource(tfds="tiny_reviews"), split) for split in ("train", "test"))
    assert train.fingerprint == "0c2adfb098829c853aaecfba60f44addd346ff101feb8f4fd17e403cc9fefc8e"
    assert test.fingerprint == "557b4d0cdcac008be85598cf82cc3e51175f1761a21fb6f5a4dcd51705005b92"


def test_rows_without_a_label_are_no_class_of_their_own(prepared, capsys):
    """TFDS has -1 where SNLI's annotators did not agree."""
    task = dataclasses.replace(get_task("classification"), tfds_dev="partly")
    source = DataSource(tfds="tiny_reviews", text_columns=("sentence",))
    rows = read_rows(task, source, "dev")
    assert (rows.texts, rows.labels.tolist()) == ([("Sätze 0",), ("Sätze 2",)], [0, 1])
    assert list(rows.lines) == [0, 2]
    note = "note: tiny_reviews[partly]: 1 of 3 rows have no label and are left out\n"
    assert capsys.readouterr().err == note


@pytest.mark.parametrize(
    ("source", "task", "message"),
    [
        ({"tfds": "glue/sst2"}, "sst2", "TFDS set 'glue/sst2' is not prepared on this machine: prepare it once, with"),
        ({"tfds": "../x"}, "sst2", "TFDS set '../x' is not prepared on this machine"),
        ({"tfds": "tiny_records"}, "sst2", "tiny_records[train]: the files cannot be read at random as array_record"),
        (
            {"tfds": "tiny_reviews"},
            "rte",
            "tiny_reviews[train]: no feature 'sentence1'; there are 'idx', 'label', 'se",
        ),
        ({"tfds": "tiny_reviews", "text_columns": ("idx",)}, "sst2", "tiny_reviews[train]: feature 'idx' is not text"),
    ],
)
def test_a_tfds_set_that_cannot_serve_is_refused_in_one_line(prepared, source, task, message):
    with pytest.raises(InputError) as error:
        read_rows(get_task(task), DataSource(**source), "train")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_predictions_are_numbered_as_the_sets_rows_though_some_are_left_out(prepared, pretrained):
    task = dataclasses.replace(get_task("sst2"), tfds_dev="partly")
    tokenizer = load_tokenizer(pretrained, load_config(pretrained))
    split = load_split(task, DataSource(tfds="tiny_reviews"), "dev", tokenizer, 16)
    assert split.predictions(np.eye(2)) == "index\tprediction\n0\t0\n2\t1\n"


def test_a_split_that_the_tfds_set_lacks_is_named(prepared):
    with pytest.raises(
        InputError, match=r"\[validation_matched\]: no such split; the set has partly, test, train, validation"
    ):
        read_rows(get_task("mnli"), DataSource(tfds="tiny_reviews"), "dev")


def test_the_line_that_prepares_a_tfds_set_names_it(prepared):
    with pytest.raises(InputError, match=r"import glue; .*tfds.builder\('glue/sst2', file_format='array_record'\)"):
        read_rows(get_task("sst2"), DataSource(tfds="glue/sst2"), "train")


def test_an_unknown_class_of_a_tfds_set_is_refused_by_row(prepared):
    with pytest.raises(InputError, match=r"tiny_reviews\[train\]:1: unknown label 'negative'"):
        read_rows(get_task("sst2"), DataSource(tfds="tiny_reviews"), "train", ("positive", "neutral"))
