"""The teacher's answers: what the step would have computed, once, and kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import tinybert_jax as tb
from tinybert_jax import answers, data, distill, sharding, train, train_step

SIZES = {"vocab_size": 40, "num_attention_heads": 4, "intermediate_size": 32, "initializer_range": 0.2}
TEACHER = tb.BertConfig(hidden_size=24, num_hidden_layers=2, **SIZES)
BUCKETS = (8, 16)


def make_tokens(seed: int, n: int = 21) -> data.Tokens:
    random = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(random.integers(2, 17, n))])
    ids = random.integers(5, 40, offsets[-1]).astype(np.int32)
    return data.Tokens(ids, offsets, np.diff(offsets).astype(np.int32), np.zeros(n, np.int32), f"tokens {seed}")


def answer(examples: data.Examples, cache: Path, teacher: str = "a") -> tuple[answers.Answered, Any]:
    mesh, model = sharding.make_mesh(), tb.BertForSequenceClassification(TEACHER)
    params = tb.init_params(model, jax.random.key(0))
    step = train_step.make_predict_step(model, mesh, params)
    return answers.answered(examples, step, params, teacher, mesh, 4, BUCKETS, cache), params


@pytest.mark.parametrize("vocabularies", [1, 2])
def test_the_logits_in_a_batch_are_those_that_the_step_would_compute(vocabularies: int, tmp_path: Path) -> None:
    """In another batch, of another length: equal but for rounding. Filler rows have zeros."""
    examples: data.Examples = make_tokens(0)
    if vocabularies == 2:
        examples = data.TwoVocabularies(make_tokens(0), make_tokens(1))
    targets = jax.jit(distill.prediction_objective(TEACHER, TEACHER).targets)
    known, params = answer(examples, tmp_path)
    table, lengths = data.epoch_plan(known.lengths, 8, BUCKETS, seed=0, epoch=0)
    for rows, length in zip(table, lengths, strict=True):
        plain, batch = (each.batch(rows, int(length), 0) for each in (examples, known))
        computed, kept = targets(params, plain), targets({}, batch)
        np.testing.assert_allclose(kept[rows >= 0], computed[rows >= 0], rtol=1e-5, atol=1e-6)
        assert not kept[rows < 0].any()
        np.testing.assert_array_equal(batch.input_ids, plain.input_ids)
    assert (table < 0).any()


def test_the_same_teacher_and_rows_are_read_and_others_are_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = answer(make_tokens(0), tmp_path)[0].logits
    computed = []
    real = answers.predict_logits
    monkeypatch.setattr(answers, "predict_logits", lambda *args: computed.append(1) or real(*args))
    np.testing.assert_array_equal(answer(make_tokens(0), tmp_path)[0].logits, first)
    assert not computed
    answer(make_tokens(0), tmp_path, teacher="b")
    answer(make_tokens(1), tmp_path)
    assert len(computed) == 2


def test_a_run_of_several_epochs_asks_the_teacher_once_and_learns_the_same(
    blank_student: Path, teacher: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tb.Experiment(
        task="classification",
        source=tb.DataSource(data=str(reviews)),
        model=str(blank_student),
        teacher=str(teacher),
        stages=(tb.Stage("prediction", epochs=2, learning_rate=1e-3),),
        max_length=16,
    )
    read = []
    make = train.make_train_step

    def make_train_step(*args: Any) -> Any:
        read.append(jax.tree.leaves(args[5]))  # the teacher's parameters
        return make(*args)

    monkeypatch.setattr(train, "make_train_step", make_train_step)
    kept = tb.run(experiment, tmp_path / "kept")
    monkeypatch.setattr(train, "_answers_repeat", lambda *args: False)
    plain = tb.run(experiment, tmp_path / "plain")
    assert not read[0]
    assert read[1]
    losses = []
    for result in (kept, plain):
        lines = map(json.loads, (result.directory.parent / "metrics.jsonl").read_text().splitlines())
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert len(losses[0]) == 2  # at steps 10 and 12
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
