"""The teacher's outputs are those that the step would have computed; they are computed once, and kept."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import rest_long

import tinybert_jax as tb
from tinybert_jax.batch import Examples
from tinybert_jax.data import batches
from tinybert_jax.data.batches import eval_batches
from tinybert_jax.data.tokens import Tokens, TwoVocabularies
from tinybert_jax.devices import sharding
from tinybert_jax.objectives.prediction import prediction_objective
from tinybert_jax.objectives.transformer import transformer_objective
from tinybert_jax.teachers import cache
from tinybert_jax.teachers.cache import make_targets_step
from tinybert_jax.training import loop, teaching
from tinybert_jax.training.diverged import DivergedMembers
from tinybert_jax.training.inputs import load_inputs
from tinybert_jax.training.loop import Run, _with_cached_targets, make_objective

SIZES = {"vocab_size": 40, "num_attention_heads": 4, "intermediate_size": 32, "initializer_range": 0.2}
TEACHER = tb.BertConfig(hidden_size=24, num_hidden_layers=4, **SIZES)
STUDENT = tb.BertConfig(hidden_size=16, num_hidden_layers=2, **SIZES)
NUMBER = tb.BertConfig(hidden_size=24, num_hidden_layers=4, id2label=("score",), **SIZES)
UNLIKE = tb.BertConfig(hidden_size=16, num_hidden_layers=2, **(SIZES | {"num_attention_heads": 2}))
BUCKETS = (8, 16)
OBJECTIVES = {
    "logits": (prediction_objective(STUDENT, TEACHER), tb.BertForSequenceClassification),
    "a number": (prediction_objective(NUMBER, NUMBER), tb.BertForSequenceClassification),
    "answers": (prediction_objective(STUDENT, TEACHER, head="span"), tb.BertForQuestionAnswering),
    "tags": (prediction_objective(STUDENT, TEACHER, head="tokens"), tb.BertForTokenClassification),
    "layers": (transformer_objective(STUDENT, TEACHER), tb.BertForSequenceClassification),
    "relations": (transformer_objective(UNLIKE, TEACHER), tb.BertForSequenceClassification),
    "layers, padding read": (
        transformer_objective(STUDENT, TEACHER, preset="paper"),
        tb.BertForSequenceClassification,
    ),
}


def make_tokens(seed: int, n: int = 21) -> Tokens:
    random = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(random.integers(2, 17, n))])
    ids = random.integers(5, 40, offsets[-1]).astype(np.int32)
    return Tokens(ids, offsets, np.diff(offsets).astype(np.int32), np.zeros(n, np.int32), f"tokens {seed}")


def asked(what: str = "logits", teacher: str = "a", compact: bool = False) -> cache.TeacherCache:
    objective, model = OBJECTIVES[what]
    objective = objective._replace(target_dtype="bfloat16" if compact else "float32")
    params = tb.init_params(model(NUMBER if what == "a number" else TEACHER), jax.random.key(0))
    buckets = BUCKETS[-1:] if "padding" in what else BUCKETS
    return cache.TeacherCache(objective, params, [teacher], sharding.make_mesh(), 4, buckets)


@pytest.mark.parametrize(
    ("what", "compact"),
    rest_long([(what, False) for what in OBJECTIVES] + [("layers", True)], [("logits", False)]),
)
def test_the_targets_in_a_batch_are_those_that_the_step_would_compute(
    what: str, compact: bool, tmp_path: Path
) -> None:
    """They are equal but for rounding in a batch of another length. Filler, and padding that no loss reads, are 0."""
    asking, examples = asked(what, compact=compact), make_tokens(0)
    known = asking.with_targets(examples, 1e9, tmp_path)
    targets = jax.jit(asking.objective.targets)
    table, lengths = batches.epoch_plan(known.lengths, 8, asking.buckets, seed=0, epoch=0)
    assert (table < 0).any()
    for rows, length in zip(table, lengths, strict=True):
        plain, batch = (each.batch(rows, int(length), 0) for each in (examples, known))
        computed = targets(asking.params, plain)
        assert jax.tree.structure(batch.targets) == jax.tree.structure(computed)
        np.testing.assert_array_equal(batch.input_ids, plain.input_ids)
        read = int(length) if asking.objective.reads_padding else None
        for kept, expected in zip(jax.tree.leaves(batch.targets), jax.tree.leaves(computed), strict=True):
            assert kept.shape == expected.shape
            assert kept.dtype == (jnp.bfloat16 if compact else expected.dtype)
            for row, kept_row, expected_row in zip(rows, kept, expected, strict=True):
                tokens = 0 if row < 0 else read or int(examples.lengths[row])
                real = tuple(slice(tokens if size == length else None) for size in expected_row.shape)
                error = {"rtol": 2**-8, "atol": 1e-6} if compact else {"rtol": 1e-5, "atol": 2e-6}
                if row >= 0:
                    np.testing.assert_allclose(kept_row[real].astype(np.float32), expected_row[real], **error)
                    assert np.count_nonzero(kept_row) == np.count_nonzero(kept_row[real])
                else:
                    assert not kept_row.any()


@pytest.mark.long
def test_a_teacher_with_another_vocabulary_is_asked_in_its_own_tokens(tmp_path: Path) -> None:
    asking, examples = asked(), TwoVocabularies(make_tokens(0), make_tokens(1))
    known = asking.with_targets(examples, 1e9, tmp_path)
    rows = np.arange(8)
    batch = known.batch(rows, 16, 0)
    assert batch.teacher_inputs is None
    computed = jax.jit(asking.objective.targets)(asking.params, make_tokens(1).batch(rows, 16))
    np.testing.assert_allclose(batch.targets, computed, rtol=1e-5, atol=1e-6)


def test_the_same_teacher_and_rows_are_read_and_others_are_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = asked().with_targets(make_tokens(0), 1e9, tmp_path)
    computed = []
    real = make_targets_step
    monkeypatch.setattr(cache, "make_targets_step", lambda *args: computed.append(1) or real(*args))
    again = asked().with_targets(make_tokens(0), 1e9, tmp_path)
    np.testing.assert_array_equal(again.flat[0], first.flat[0])
    assert not computed
    asked(teacher="b").with_targets(make_tokens(0), 1e9, tmp_path)
    asked().with_targets(make_tokens(1), 1e9, tmp_path)
    asked(compact=True).with_targets(make_tokens(0), 1e9, tmp_path)
    assert len(computed) == 3


@pytest.mark.long
def test_runs_that_ask_something_else_of_a_teacher_do_not_share_its_answers(
    blank_student: Path, teacher: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tb.Experiment(
        task="classification",
        source=tb.DataSource(data=str(reviews)),
        model=str(blank_student),
        teacher=str(teacher),
        stages=(tb.Stage("transformer"), tb.Stage("prediction")),
        max_length=16,
    )
    inputs = load_inputs(first)
    assert inputs.teacher is not None
    keys: list[str] = []

    def with_targets(self: cache.TeacherCache, examples: Examples, limit: float) -> Examples:
        keys.append(self._fingerprint(examples, self._specs(examples)[0]))
        return examples

    monkeypatch.setattr(cache.TeacherCache, "with_targets", with_targets)

    def ask(number: int = 0, rows: int = 64, buckets: tuple[int, ...] = (8, 16), **changes: Any) -> None:
        experiment = dataclasses.replace(first, **changes)
        bucketed = dataclasses.replace(inputs, buckets=buckets)
        mesh = sharding.make_mesh()
        monkeypatch.setattr(teaching, "EVAL_BATCH_SIZE", rows)
        diverged = DivergedMembers([experiment], tmp_path)
        run = Run([experiment], bucketed, bucketed.teacher_model.params, None, lambda *_: {}, mesh, tmp_path, diverged)
        asked_stage = experiment.stages[number]
        _with_cached_targets(run, asked_stage, make_objective(experiment, number, bucketed), bucketed.train)

    ask()
    ask()
    assert keys[0] == keys[1]
    ask(layer_map="top")
    ask(layer_map=(1, 2))
    ask(compute_dtype="bfloat16")
    ask(preset="paper")
    ask(preset="official")
    assert keys.pop() == keys[-1], "both read the padding of the same layers"
    ask(rows=32)
    ask(buckets=(16,))
    ask(1)
    ask(1, compute_dtype="bfloat16")
    ask(1, preset="official")
    with monkeypatch.context() as patch:
        patch.setenv("XLA_FLAGS", "--other")
        ask()
    with jax.default_matmul_precision("highest"):
        ask()
    assert len(set(keys[1:])) == len(keys[1:])


@pytest.mark.parametrize(
    ("preset", "kept"),
    rest_long([("default", "bfloat16"), ("paper", "float32"), ("official", "float32")], [("default", "bfloat16")]),
)
def test_only_the_default_preset_keeps_layers_in_fewer_bits(
    preset: str, kept: str, blank_student: Path, teacher: Path, reviews: Path, tmp_path: Path
) -> None:
    experiment = tb.Experiment(
        task="classification",
        source=tb.DataSource(data=str(reviews)),
        model=str(blank_student),
        teacher=str(teacher),
        stages=(tb.Stage("transformer"), tb.Stage("prediction")),
        preset=preset,
        max_length=16,
    )
    inputs = load_inputs(experiment)
    mesh, diverged = sharding.make_mesh(), DivergedMembers([experiment], tmp_path)
    run = Run([experiment], inputs, inputs.teacher_model.params, None, lambda *_: {}, mesh, tmp_path, diverged)
    for index, dtype in enumerate((kept, "float32")):
        stage = experiment.stages[index]
        known, params = _with_cached_targets(run, stage, make_objective(experiment, index, inputs), inputs.train)
        assert params == {}
        leaves = jax.tree.leaves(known.batch(np.arange(4), 16, 0).targets)
        assert {leaf.dtype.name for leaf in leaves} == {dtype}


def test_a_computation_that_is_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was computed before is on disk: the second call computes the rest, and keeps the same bytes."""
    whole = asked().with_targets(make_tokens(0), 1e9, tmp_path / "whole")
    monkeypatch.setattr("tinybert_jax.cache.SAVE_EVERY", 0.0)
    computed: list[int] = []
    batches_of, fails = eval_batches, [True]

    def failing(*arguments: Any) -> Any:
        for rows, batch in batches_of(*arguments):
            if fails and len(computed) == 3:
                raise KeyboardInterrupt
            computed.append(len(rows))
            yield rows, batch

    monkeypatch.setattr("tinybert_jax.inference.step.eval_batches", failing)
    with pytest.raises(KeyboardInterrupt):
        asked().with_targets(make_tokens(0), 1e9, tmp_path / "parts")
    fails.clear()
    again = asked().with_targets(make_tokens(0), 1e9, tmp_path / "parts")
    assert [np.asarray(flat).tobytes() for flat in again.flat] == [np.asarray(flat).tobytes() for flat in whole.flat]
    total = len(list(batches_of(make_tokens(0), asked().batch_size, asked().buckets)))
    assert len(computed) == total + 1, "the batch that was running when it stopped is computed twice"
    assert not list(tmp_path.glob("parts/targets/.partial-*"))


@pytest.mark.parametrize("damage", rest_long(["cut off", "a bit", "no checksums"], ["a bit"]))
def test_a_damaged_file_is_computed_anew(damage: str, tmp_path: Path) -> None:
    first = asked().with_targets(make_tokens(0), 1e9, tmp_path)
    logits = np.array(first.flat[0])
    (file,) = tmp_path.glob("targets/*/0.bin")
    content = file.read_bytes()
    if damage == "no checksums":
        (file.parent / "checksums.json").unlink()
    file.write_bytes(content[:-4] if damage == "cut off" else content[:-1] + bytes([content[-1] ^ 1]))
    again = asked().with_targets(make_tokens(0), 1e9, tmp_path)
    np.testing.assert_array_equal(again.flat[0], logits)


@pytest.mark.long
def test_the_cache_stays_within_its_limit(tmp_path: Path) -> None:
    """21 rows of 2 logits are 168 bytes: two sets fit into 500 with their checksums, and of three the one that was
    used longest ago goes. One of 168 into 100 does not: the steps are to compute it.
    """
    with pytest.raises(cache.OverLimit, match=r"^need 0\.0 GB$"):
        asked().with_targets(make_tokens(0), 100.0, tmp_path)
    assert not list(tmp_path.glob("targets/*"))
    folders = []
    for seed in (0, 1):
        known = asked().with_targets(make_tokens(seed), 500.0, tmp_path)
        assert known.flat[0].nbytes == 168
        (new,) = set(tmp_path.glob("targets/*")) - set(folders)
        folders.append(new)
    os.utime(folders[0], (1, 1))
    os.utime(folders[1], (2, 2))
    asked().with_targets(make_tokens(0), 500.0, tmp_path)  # is read, so that the other one is the oldest
    asked().with_targets(make_tokens(2), 500.0, tmp_path)
    assert folders[0].is_dir()
    assert not folders[1].is_dir()
    assert len(list(tmp_path.glob("targets/*"))) == 2


def test_what_another_run_is_writing_is_left_alone_and_what_a_killed_one_left_is_not(tmp_path: Path) -> None:
    for name, age in ((".tmp-new", 0), (".tmp-old", 2 * cache.STALE)):
        (tmp_path / "targets" / name / "new").mkdir(parents=True)
        (tmp_path / "targets" / name / "new" / "0.bin").write_bytes(bytes(400))
        os.utime(tmp_path / "targets" / name, (time.time() - age,) * 2)
    asked().with_targets(make_tokens(0), 500.0, tmp_path)
    assert (tmp_path / "targets" / ".tmp-new").is_dir()
    assert not (tmp_path / "targets" / ".tmp-old").exists()


def test_a_disk_without_room_is_named_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100}))
    with pytest.raises(tb.InputError, match=r"the teacher's outputs need 0\.0 GB, and 0\.0 GB are free: set TINYB"):
        asked().with_targets(make_tokens(0), 1e9, tmp_path)


@pytest.mark.parametrize("objective", ["transformer", pytest.param("prediction", marks=pytest.mark.long)])
def test_a_run_of_several_epochs_asks_the_teacher_once_and_learns_the_same(
    objective: Any,
    blank_student: Path,
    teacher: Path,
    reviews: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Logits differ by rounding alone; hidden states, queries and keys by that of bfloat16."""
    read = []
    make = loop.make_train_step

    def make_train_step(*args: Any) -> Any:
        read.append(jax.tree.leaves(args[5]))  # the teacher's parameters
        return make(*args)

    monkeypatch.setattr(loop, "make_train_step", make_train_step)
    losses = []
    for limit in (1.0, 0.0):
        experiment = tb.Experiment(
            task="classification",
            source=tb.DataSource(data=str(reviews)),
            model=str(blank_student),
            teacher=str(teacher),
            stages=(tb.Stage(objective, epochs=2, learning_rate=1e-3),),
            max_length=16,
            teacher_cache_gb=limit,
        )
        out = tb.run(experiment, tmp_path / str(limit)).directory.parent
        lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert [bool(leaves) for leaves in read] == [False, True]
    assert len(losses[0]) == 2  # at steps 10 and 12
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3 if objective == "transformer" else 1e-5)
