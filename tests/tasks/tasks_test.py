"""The task table: official files, label ids, recipes and scores."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from tinybert_jax.data.labels import discover_labels, label_ids, written_labels
from tinybert_jax.errors import InputError
from tinybert_jax.settings.tasks import TASKS, get_task
from tinybert_jax.tasks.classification import score
from tinybert_jax.tasks.metrics import SET_METRICS

GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")


def test_the_table_has_the_nine_glue_tasks_and_the_others():
    texts = {"classification", "multi_label", "regression", "embedding", "retrieval", "ranking"}
    others = {"mnli_mismatched", "squad", "squad2", "ner"} | texts
    assert set(TASKS) == {*GLUE, *others}
    assert all(name == task.name for name, task in TASKS.items())


def test_an_unknown_task_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"unknown task 'sst-2'; did you mean sst2\?; known are cola, sst2, mrpc"):
        get_task("sst-2")


@pytest.mark.parametrize(
    ("name", "epochs", "max_length", "selection"),
    [
        ("cola", 50, 64, "matthews"),
        ("sst2", 20, 64, "accuracy"),
        ("mrpc", 20, 128, "mean_f1_accuracy"),
        ("stsb", 20, 128, "mean_pearson_spearman"),
        ("qqp", 10, 128, "mean_f1_accuracy"),
        ("mnli", 10, 128, "accuracy"),
        ("qnli", 10, 128, "accuracy"),
        ("rte", 20, 128, "accuracy"),
        ("wnli", 20, 128, "accuracy"),
    ],
)
def test_recipes_are_those_of_the_paper(name, epochs, max_length, selection):
    task = get_task(name)
    assert (task.intermediate_epochs, task.max_length, task.selection) == (epochs, max_length, selection)
    assert (task.prediction_epochs, task.prediction_learning_rate) == (3, 3e-5)


@pytest.mark.parametrize(
    ("name", "written", "label_id"),
    [
        ("cola", "1", 1),
        ("sst2", "0", 0),
        ("sst2", "positive", 1),
        ("mrpc", "1", 1),
        ("qqp", "0", 0),
        ("mnli", "entailment", 0),
        ("mnli", "contradiction", 2),
        ("qnli", "not_entailment", 1),
        ("rte", "entailment", 0),
        ("wnli", "1", 1),
    ],
)
def test_what_is_written_in_a_glue_file_has_the_id_of_the_hub(name, written, label_id):
    task = get_task(name)
    assert label_ids(task, task.labels)[written] == label_id


def test_a_teacher_with_another_order_or_case_of_labels_gets_its_own_ids():
    ids = label_ids(get_task("mnli"), ("CONTRADICTION", "ENTAILMENT", "NEUTRAL"))
    assert [ids[name] for name in ("entailment", "neutral", "contradiction")] == [1, 2, 0]
    ids = label_ids(get_task("sst2"), ("POSITIVE", "NEGATIVE"))
    assert (ids["0"], ids["1"], ids["positive"]) == (1, 0, 0)


def test_unnamed_labels_stand_for_written_ids_and_never_for_written_names():
    ids = label_ids(get_task("sst2"), ("LABEL_0", "LABEL_1"))
    assert (ids["0"], ids["1"], ids["positive"]) == (0, 1, 1)
    assert "entailment" not in label_ids(get_task("mnli"), ("LABEL_0", "LABEL_1", "LABEL_2"))
    assert label_ids(get_task("classification"), ("LABEL_0", "LABEL_1"))["1"] == 1


def test_discovered_labels_are_sorted_by_value_if_all_are_integers():
    assert discover_labels(["10", "9", "-1", "9"]) == ("-1", "9", "10")
    assert discover_labels(["10", "9", "x"]) == ("10", "9", "x")
    assert discover_labels(["9" * 5000, "10"]) == ("10", "9" * 5000), "more digits than Python reads"


def test_a_score_holds_each_metric_and_their_mean():
    logits = np.array([[2.0, 1.0], [0.0, 1.0], [0.0, 3.0], [5.0, 1.0]], np.float32)
    scores = score(get_task("mrpc"), logits, np.array([0, 1, 0, 0], np.int32))
    assert scores == pytest.approx({"f1": 2 / 3, "accuracy": 0.75, "mean_f1_accuracy": (2 / 3 + 0.75) / 2})
    assert score(get_task("sst2"), logits, np.array([0, 1, 0, 0], np.int32)) == {"accuracy": 0.75}


def test_f1_counts_the_same_class_whatever_the_order_of_a_models_labels():
    task, logits = get_task("mrpc"), np.array([[2.0, 1.0], [0.0, 1.0], [0.0, 3.0], [5.0, 1.0]], np.float32)
    labels = np.array([0, 1, 0, 0], np.int32)
    for reversed_names in (("equivalent", "not_equivalent"), ("1", "0")):  # by name, or as the files write them
        assert score(task, logits[:, ::-1], 1 - labels, reversed_names) == score(task, logits, labels, task.labels)


def test_labels_as_many_as_rows_are_taken_for_numbers():
    with pytest.raises(InputError, match=r"500 different labels in 500 rows: .*--task regression"):
        discover_labels([str(i) for i in range(500)])


def test_regression_is_scored_on_its_one_logit():
    labels = np.array([0.0, 1.0, 5.0], np.float32)
    scores = score(get_task("stsb"), labels[:, None] * 2 + 1, labels)
    assert scores == pytest.approx({"pearson": 1.0, "spearman": 1.0, "mean_pearson_spearman": 1.0})


@pytest.mark.parametrize(("name", "shape"), [("sst2", (3, 2)), ("stsb", (4, 2)), ("stsb", (4,))])
def test_logits_of_another_shape_are_refused(name, shape):
    with pytest.raises(ValueError, match="must be"):
        score(get_task(name), np.zeros(shape, np.float32), np.zeros(4, np.float32))


def test_every_selection_metric_is_a_key_of_the_score():
    for task in TASKS.values():
        if not task.kind.has_columns or not task.kind.labels_each_row:
            assert task.selection in task.metrics
            continue
        if task.is_multi_label:
            assert set(task.metrics) <= set(SET_METRICS)
            continue
        logits = np.zeros((4, 1 if task.is_regression else 2), np.float32)
        assert task.selection in score(task, logits, np.array([0, 1, 0, 1]))
        assert len(task.written) in (0, len(task.labels or ()))


def test_predictions_are_written_as_the_task_writes_labels_in_the_order_of_the_model():
    assert written_labels(get_task("sst2"), ("negative", "positive")) == ("0", "1")
    assert written_labels(get_task("sst2"), ("POSITIVE", "NEGATIVE")) == ("1", "0")
    assert written_labels(get_task("sst2"), ("LABEL_0", "LABEL_1")) == ("0", "1")
    hub = ("CONTRADICTION", "NEUTRAL", "ENTAILMENT")
    assert written_labels(get_task("mnli"), hub) == ("contradiction", "neutral", "entailment")
    assert written_labels(get_task("classification"), ("great", "other")) == ("great", "other")
    assert written_labels(get_task("classification"), ("LABEL_0", "LABEL_1")) == ("0", "1"), "as the file was read"


def test_the_table_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_task("sst2").max_length = 3


def test_importing_the_table_loads_no_heavy_package():
    heavy = "{'tensorflow_datasets', 'grain', 'transformers', 'sklearn', 'scipy', 'jax', 'torch', 'tensorflow'}"
    code = f"import sys; import tinybert_jax.tasks; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
