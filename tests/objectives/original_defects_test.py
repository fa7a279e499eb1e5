"""Each defect of the authors' code has a test that shows that ours is free of it; some of the tests are here."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

import tinybert_jax as tb
from tinybert_jax.cli import entry, train

HERE = Path(__file__).parent.parent
SHOWN: dict[str, str] = {
    "the epochs and lengths of a task never apply": "original_defects::test_a_tasks_recipe_applies",
    "weight decay is read and ignored": "original_defects::test_weight_decay_of_the_stage_applies",
    "the teacher's dropout is active": (
        "objectives::test_dropout_of_the_student_comes_from_the_key_and_the_teacher_has_none"
    ),
    "the mismatched dev set of MNLI overwrites the one that selects": (
        "every_task::test_mnli_selects_on_the_matched_set_scores_both_and_writes_both_submissions"
    ),
    "nobody checks that the order of labels is the checkpoint's": (
        "every_task::test_a_checkpoint_with_labels_in_another_order_is_matched_by_name"
    ),
    "several devices wrap the teacher instead of the student": (
        "sharding::test_every_mesh_gives_the_loss_and_the_gradients_of_one_device"
    ),
    "half precision calls a method that does not exist": "run::test_bfloat16_distils_with_float32_parameters",
    "the cache folder is hard-coded": "cache::test_the_cache_is_where_the_user_says",
    "masking probability 0 still masks": "corpus::test_probability_0_masks_nothing",
    "variants of the second text all come with the last of the first": (
        "variants::test_both_texts_of_a_pair_vary_and_independently"
    ),
    "augmented rows are written quoted and read raw": (
        "variants::test_the_variants_file_has_the_columns_of_the_training_file_and_reads_back"
    ),
    "GloVe tokens with spaces crash it": "neighbours::test_words_may_hold_spaces_and_numbers",
    "few GloVe rows give NaN": (
        "neighbours::test_of_equal_vectors_the_earlier_comes_first_and_all_are_given_where_there_are_few"
    ),
    "projections of second-version checkpoints start anew": (
        "objectives::test_projections_that_a_student_brings_are_trained_on_and_not_exported"
    ),
    "augmentation cannot be restarted": "candidates::test_a_build_that_was_killed_goes_on_where_it_was",
    "runs cannot be resumed": "resume::test_a_stopped_run_resumes_to_the_same_bits",
    "there are no test predictions": "evaluate::test_a_test_file_without_labels_gets_predictions_and_nothing_else",
    "there is no SQuAD and no token classification": (
        "every_task::test_answers_and_tags_are_learnt_distilled_and_written"
    ),
    "only the teacher's number of heads will do": (
        "every_task::test_a_teacher_with_other_heads_teaches_its_relations"
    ),
}


@pytest.mark.parametrize("defect", SHOWN)
def test_every_defect_has_a_test(defect: str) -> None:
    module, name = SHOWN[defect].split("::")
    [file] = HERE.rglob(f"{module}_test.py")
    tree = ast.parse(file.read_text("utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_a_tasks_recipe_applies(monkeypatch: pytest.MonkeyPatch) -> None:
    """CoLA gets 50 epochs of intermediate distillation at length 64, and MNLI 10 at 128."""
    run: list[tb.Experiment] = []
    monkeypatch.setattr(train, "execute", lambda experiments, *more: run.extend(experiments))
    for task in ("cola", "mnli"):
        arguments = ["--teacher", "t", "--student", "tinybert-4l-312d", "--task", task, "--data", "d", "--out", "o"]
        monkeypatch.setattr("sys.argv", ["tinybert", "distill", *arguments, "--preset", "paper"])
        entry.main()
    recipes = [(e.max_length, [stage.epochs for stage in e.stages]) for e in run]
    assert recipes == [(64, [50, 3]), (128, [10, 3])]
    assert [stage.learning_rate for stage in run[0].stages] == [5e-5, 3e-5]


@pytest.mark.long
def test_weight_decay_of_the_stage_applies(pretrained: Path, reviews: Path, tmp_path: Path) -> None:
    weights, common = [], {"max_steps": 3, "schedule": "constant", "learning_rate": 1e-2}
    for weight_decay in (0.0, 0.5):
        experiment = tb.Experiment(
            task="classification",
            source=tb.DataSource(data=str(reviews)),
            model=str(pretrained),
            stages=(tb.Stage("supervised", weight_decay=weight_decay, **common),),
            max_length=16,
        )
        directory = tb.run(experiment, tmp_path / str(weight_decay)).directory
        params = tb.load_hf(directory)[1]
        # a word that no review holds is moved by decay alone
        table = np.asarray(params["encoder"]["embeddings"]["word_embeddings"]["embedding"])
        weights.append(np.linalg.norm(table[4]))
    start = np.asarray(tb.load_hf(pretrained)[1]["encoder"]["embeddings"]["word_embeddings"]["embedding"][4])
    np.testing.assert_allclose(weights[0], np.linalg.norm(start), rtol=1e-6)
    np.testing.assert_allclose(weights[1], np.linalg.norm(start) * (1 - 0.5 * 1e-2) ** 3, rtol=1e-5)
