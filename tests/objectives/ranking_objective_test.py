"""The losses of rerankers: torch's stored numbers, groups of unlike sizes, parts of a batch, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_pair
from safetensors import safe_open

import tinybert_jax as tb
from tinybert_jax import losses
from tinybert_jax.data.queries import Passages, Queries
from tinybert_jax.data.tokens import Tokens, TwoVocabularies
from tinybert_jax.objectives.objective import Context
from tinybert_jax.objectives.ranking import ranking_labels_objective, ranking_objective
from tinybert_jax.objectives.table import build_objective
from tinybert_jax.settings.arithmetic import PRESETS
from tinybert_jax.training.step import _accumulated

STORED = Path(__file__).parent.parent / "fixtures" / "expected-ranking.safetensors"
TEACHER, STUDENT = (
    dataclasses.replace(config, id2label=("LABEL_0",)) for config in (small_pair.TEACHER, small_pair.STUDENT)
)
TEACHER_PARAMS, STUDENT_PARAMS = (
    tb.init_params(tb.BertForSequenceClassification(config), jax.random.key(i))
    for i, config in enumerate((TEACHER, STUDENT))
)
# of two queries, four passages and two
QUERIES, RELEVANCE = np.array([0, 1, 0, 0, 1, 0]), np.array([0, 1, 2, 0, 0, 0], np.float32)
OBJECTIVES = {
    "margin_mse": ranking_objective(STUDENT, TEACHER),
    "listwise": ranking_objective(STUDENT, TEACHER, tb.Ranking(ranking_loss="listwise", temperature=2.5)),
    "labels": ranking_labels_objective(STUDENT),
}


@pytest.mark.parametrize("name", ["margin_mse", "listwise", "labels"])
def test_loss_and_gradient_are_torchs(name: str) -> None:
    with safe_open(STORED, "np") as file:
        temperature = float(file.metadata()["temperature"])
        tensors = {key: jnp.asarray(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118

    def loss(scores: jax.Array) -> jax.Array:
        other = tensors["relevance" if name == "labels" else "teacher"]
        if name == "listwise":
            function = jax.vmap(losses.listwise_cross_entropy, (0, 0, 0, None))
            return temperature**2 * function(scores, other, tensors["mask"], temperature).mean()
        function = jax.vmap({"margin_mse": losses.margin_mse, "labels": losses.relevance_cross_entropy}[name])
        return function(scores, other, tensors["mask"]).mean()

    value, gradient = jax.jit(jax.value_and_grad(loss))(tensors["student"])
    np.testing.assert_allclose(value, tensors[f"{name}.loss"], rtol=1e-5)
    scale = float(jnp.abs(tensors[f"{name}.gradient"]).max())
    np.testing.assert_allclose(gradient, tensors[f"{name}.gradient"], rtol=1e-5, atol=1e-5 * scale)


def make_tokens(seed: int = 0) -> Tokens:
    random = np.random.default_rng(seed)
    lengths = random.integers(4, 9, len(QUERIES))
    ids = random.integers(1, STUDENT.vocab_size, lengths.sum()).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Tokens(ids, offsets, (lengths // 2).astype(np.int32), RELEVANCE, f"tokens {seed}")


def make_queries(rows: Any, size: int = 3) -> Queries:
    return Queries(rows, Passages(QUERIES, RELEVANCE).groups(size))


def batch_of(queries: Queries, *numbers: int) -> tb.Batch:
    return jax.tree.map(jnp.asarray, queries.batch(np.array(numbers), 8))


def scores_of(config: tb.BertConfig, params: tb.Params, batch: tb.Batch) -> np.ndarray:
    model = tb.BertForSequenceClassification(config)
    return np.asarray(model.apply({"params": params}, *batch[:3]).logits[:, 0], np.float64)


def by_hand(name: str, groups: list[list[int]]) -> float:
    """A mean over groups of rows, the relevant row first, from the scores of all rows."""
    rows = jax.tree.map(jnp.asarray, make_tokens().batch(np.arange(len(QUERIES)), 8))
    student, teacher = scores_of(STUDENT, STUDENT_PARAMS, rows), scores_of(TEACHER, TEACHER_PARAMS, rows)
    values = []
    for group in groups:
        s, t, y = student[group], teacher[group], RELEVANCE[group]
        if name == "margin_mse":
            values.append(np.mean(((s[0] - s[1:]) - (t[0] - t[1:])) ** 2))
        elif name == "listwise":
            soft, log = np.exp(t / 2.5), s / 2.5 - np.log(np.exp(s / 2.5).sum())
            values.append(-(2.5**2) * (soft / soft.sum()) @ log)
        else:
            values.append(-y / y.sum() @ (s - np.log(np.exp(s).sum())))
    return float(np.mean(values))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_is_a_mean_over_queries_whatever_fills_groups_and_batches(name: str) -> None:
    objective, queries = OBJECTIVES[name], make_queries(make_tokens())
    assert queries.groups.tolist() == [[2, 0, 3], [2, 5, -1], [1, 4, -1]]
    expected = by_hand(name, [[2, 0, 3], [2, 5], [1, 4]])
    batch = batch_of(queries, 1, 0, -1, 2)
    loss = jax.jit(lambda params: objective.loss(params, objective.targets(TEACHER_PARAMS, batch), batch, HYPER, None))
    np.testing.assert_allclose(loss(STUDENT_PARAMS)[0], expected, rtol=1e-4)
    assert float(objective.weight(batch)) == 3


HYPER = tb.Hyper()


@pytest.mark.long
@pytest.mark.parametrize("name", OBJECTIVES)
def test_parts_of_a_batch_add_up_and_keep_queries_whole(name: str) -> None:
    objective, batch = OBJECTIVES[name], batch_of(make_queries(make_tokens()), 0, 1, 2, -1)

    def gradients(batch: tb.Batch, key: Any) -> Any:
        targets = objective.targets(TEACHER_PARAMS, batch)
        return jax.grad(lambda params: objective.loss(params, targets, batch, HYPER, None)[0])(STUDENT_PARAMS)

    whole = jax.jit(gradients)(batch, None)
    keys = jax.random.split(jax.random.key(0), 2)
    parts = jax.jit(lambda batch: _accumulated(gradients, objective.weight, batch, keys))(batch)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(whole))
    assert scale > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), parts, whole)


@pytest.mark.long
def test_targets_of_rows_are_those_of_their_groups_and_a_teacher_reads_its_own_tokens() -> None:
    objective, tokens = OBJECTIVES["margin_mse"], make_tokens()
    queries = make_queries(TwoVocabularies(tokens, make_tokens(1)))
    grouped = objective.targets(TEACHER_PARAMS, batch_of(queries, 0, 1, 2))
    rows = jax.tree.map(jnp.asarray, queries.rows.batch(np.arange(len(QUERIES)), 8))
    flat = objective.targets(TEACHER_PARAMS, rows)
    assert (grouped.shape, flat.shape) == ((3, 3), (6,))
    real = queries.groups >= 0
    np.testing.assert_allclose(grouped[real], flat[queries.groups[real]], rtol=1e-5)
    unpaired = objective.targets(TEACHER_PARAMS, rows._replace(teacher_inputs=None))
    assert np.abs(unpaired - flat).max() > 1e-3
    with pytest.raises(ValueError, match="every batch must bring its targets"):
        ranking_objective(STUDENT, None).targets({}, rows)


def test_a_group_has_a_relevant_passage_and_others_and_all_are_in_one() -> None:
    queries = np.array([0] * 5 + [1] * 3 + [2] * 3 + [3])
    relevance = np.array([1, 0, 3, 0, 0, 2, 1, 2, 0, 0, 0, 1], np.float32)
    groups = Passages(queries, relevance).groups(3).tolist()
    # two relevant ones; none that is not; none that is; one passage
    assert groups == [[0, 1, 3], [2, 4, -1], [5, 6, 7], [8, 9, 10]]
    unknown = Passages(queries, np.full(12, np.nan, np.float32)).groups(2)
    assert unknown.tolist() == [[0, 1], [0, 2], [0, 3], [0, 4], [5, 6], [5, 7], [8, 9], [8, 10]]
    with pytest.raises(tb.InputError, match="every query of the training rows has one passage: give two or more"):
        Passages(np.arange(3), np.zeros(3, np.float32)).groups(2)


def test_the_rows_of_groups_have_their_longest_length_and_a_fingerprint() -> None:
    tokens = make_tokens()
    queries, others = make_queries(tokens), make_queries(tokens, 2)
    expected = [max(int(tokens.lengths[row]) for row in group if row >= 0) for group in queries.groups]
    assert queries.lengths.tolist() == expected
    assert len(queries) == 3
    assert queries.fingerprint == make_queries(make_tokens()).fingerprint != others.fingerprint


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"candidates": 1}, "candidates is 1; it must be at least 2, which are compared"),
        ({"ranking_loss": "listwise", "temperature": 0.0}, "temperature is 0.0; it must be finite and greater than 0"),
        ({"temperature": 2.0}, "temperature is 2.0, and margin_mse has none: take listwise, or leave it out"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(tb.InputError, match=message):
        tb.Ranking(**settings)


def test_objectives_of_queries_and_of_rows_are_refused_for_each_other() -> None:
    rows = Context(STUDENT, TEACHER, "sequence", "uniform", PRESETS["default"])
    for settings in (tb.Ranking(), tb.RankingLabels()):
        with pytest.raises(tb.InputError, match="learns queries, and the task has single rows: take another --stage"):
            build_objective(settings, rows)
    for other in (tb.Prediction(), tb.Patient(), tb.Supervised()):
        with pytest.raises(tb.InputError, match="learns single rows, and the task has queries with their passages"):
            build_objective(other, rows._replace(by_query=True))
    with pytest.raises(tb.InputError, match="the authors' code knows no queries and passages; use --preset default"):
        build_objective(tb.Ranking(), rows._replace(by_query=True, arithmetic=PRESETS["official"]))
