"""Pruning in training: what is chosen and when, by which gradients, and what becomes of the model."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import distillation, logged, on_devices, rest_long, resumed_beside_another
from small_model import CONFIG, make_params, rows

import tinybert_jax as tb
from tinybert_jax.compression import gradual, hard_concrete, prune
from tinybert_jax.compression.gates import Cost, Gates, are_open, choose, gated, read_by_outputs, share_of
from tinybert_jax.devices import sharding
from tinybert_jax.export.export import program
from tinybert_jax.models.parameters import encoder_macs
from tinybert_jax.objectives.objective import CARRIED, Objective
from tinybert_jax.objectives.supervised import supervised_objective
from tinybert_jax.objectives.transformer import transformer_objective
from tinybert_jax.training import optim
from tinybert_jax.training.step import create_state, make_train_step

NAME = tb.GradualPrune.name
COST = Cost(*prune.costs(CONFIG, 6.0))
RULES = ["fisher", "l0"]


def train(
    settings: tb.GradualPrune, steps: int, total: int = 40, parts: int = 1, objective: Any = supervised_objective
) -> tuple[list[Any], list[float], Objective]:
    """What is carried after each step, the share that each step logs, and the wrapped objective."""
    examples, mesh = rows(), sharding.make_mesh()
    wrapped = gradual.wrap(settings, objective(CONFIG), CONFIG, examples)
    optimizer, schedule = optim.make_optimizer("adamw"), optim.make_schedule("constant")
    trainable = wrapped.init(jax.random.key(2), make_params())
    state = create_state(trainable, optimizer, jax.random.key(3), mesh)
    step = make_train_step(wrapped, optimizer, schedule, mesh, state, {}, parts)
    carried, kept = [], []
    for done in range(steps):
        hyper = tb.Hyper(3e-3, progress=done / total)
        state, metrics = step(state, {}, examples.batch(np.arange(16), 6, 0), hyper)
        carried.append(jax.device_get(state.carried[NAME]))
        kept.append(float(metrics["kept"]))
    return carried, kept, wrapped


def test_the_schedule_is_cubic_until_its_end() -> None:
    settings = tb.GradualPrune(0.25, until=0.7)
    shares = [float(gradual.allowed_share(settings, progress)) for progress in np.linspace(0, 1, 101)]
    assert shares[0] == 1.0
    assert shares[35] == pytest.approx(0.25 + 0.75 / 8)
    assert shares[70:] == pytest.approx([0.25] * 31)
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("share", [0.9, 0.5, 0.11, 0.0])
def test_what_is_chosen_is_what_the_search_of_pruning_at_once_finds(share: float) -> None:
    random = np.random.default_rng(0)
    importance = Gates(random.random((3, 4), np.float32) * 10, random.random((3, 32), np.float32))
    gates = Gates(np.ones((3, 4), np.float32), np.ones((3, 32), np.float32))
    gates.heads[1, 2] = gates.units[2, 5] = importance.heads[0, 0] = 0.0
    chosen = jax.jit(choose, static_argnums=2)(importance, gates, COST, share)
    searched = prune.select(prune.Kept(*importance), prune.Kept(*(gate > 0 for gate in gates)), COST, share, False)
    for got, expected in zip(chosen, searched, strict=True):
        np.testing.assert_array_equal(np.asarray(got) > 0, expected)
    assert share - 0.07 < share_of(chosen, COST) <= share + 1e-6  # a head costs 0.066 of all
    assert not chosen.heads[1, 2]
    assert not chosen.units[2, 5]


@pytest.mark.long
def test_importance_is_of_the_changes_of_the_loss_by_finite_differences() -> None:
    settings, batch = tb.GradualPrune(0.5), rows().batch(np.arange(16), 6, 0)
    wrapped = gradual.wrap(settings, supervised_objective(CONFIG), CONFIG, rows())
    trainable = wrapped.init(jax.random.key(2), make_params())

    @jax.jit
    def loss(gates: Gates) -> Any:
        carried = trainable[CARRIED] | {NAME: trainable[CARRIED][NAME] | {"gates": gates}}
        return wrapped.loss(trainable | {CARRIED: carried}, (), batch, tb.Hyper(), None)[0]

    gates = trainable[CARRIED][NAME]["gates"]
    gradients = jax.jit(jax.grad(loss))(gates)
    for name, at in (("heads", (1, 2)), ("heads", (0, 0)), ("units", (0, 5)), ("units", (1, 30))):
        sides = [loss(gates._replace(**{name: getattr(gates, name).at[at].add(by)})) for by in (1e-2, -1e-2)]
        np.testing.assert_allclose(getattr(gradients, name)[at], (sides[0] - sides[1]) / 2e-2, atol=1e-4, rtol=1e-2)
    carried, _, _ = train(settings, 1)
    for importance, gradient in zip(carried[0]["importance"], gradients, strict=True):
        np.testing.assert_allclose(importance, 0.1 * np.square(gradient), rtol=1e-3, atol=1e-9)


def test_closed_gates_take_away_all_weights_of_a_head_and_a_unit() -> None:
    gates = jax.tree.map(jnp.asarray, Gates(np.ones((2, 4), np.float32), np.ones((2, 32), np.float32)))
    gates = Gates(gates.heads.at[1, 2].set(0.0), gates.units.at[0, 7].set(0.0))
    layer = gated(make_params(), gates)["encoder"]["encoder"]["layer"]
    for name in ("query", "key", "value"):
        assert not layer["attention"]["self"][name]["kernel"][1, :, 8:12].any()
        assert layer["attention"]["self"][name]["kernel"][1, :, :8].all()
    assert not layer["attention"]["output"]["dense"]["kernel"][1, 8:12].any()
    assert not layer["intermediate"]["dense"]["kernel"][0, :, 7].any()
    assert not layer["output"]["dense"]["kernel"][0, 7].any()
    assert layer["output"]["dense"]["kernel"][1].all()


@pytest.mark.parametrize("rule", rest_long(RULES, ["fisher"]))
@pytest.mark.parametrize("macs", [0.25, pytest.param(0.6, marks=pytest.mark.long)])
def test_gates_close_by_the_rule_reach_the_share_and_are_fixed_from_then_on(
    macs: float, rule: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradual, "EVERY", 3)
    settings = tb.GradualPrune(macs, rule)
    carried, logged_shares, wrapped = train(settings, 40)
    gates = [np.concatenate([gate.ravel() for gate in state["gates"]]) for state in carried]
    shares = [float(share_of(are_open(state["gates"]), COST)) for state in carried]
    end = 28  # 0.7 of 40 steps are done before it: steps are counted from 0
    for step, share in enumerate(shares):
        allowed = 1.0 if step < 2 else float(gradual.allowed_share(settings, (step - (step - 2) % 3) / 40))
        if step >= end:
            assert macs - COST.heads / (8 * COST.heads + 64 * COST.units) < share <= macs + 1e-5
            np.testing.assert_array_equal(gates[step], gates[end])
        elif rule == "fisher":
            assert share <= allowed + 1e-5
        else:
            assert share == 1.0
    for before, after in itertools.pairwise(gates):
        assert not ((before == 0) & (after > 0)).any(), "closed gates stay closed"
    assert wrapped.settled is not None
    assert [bool(wrapped.settled({NAME: state})) for state in carried] == [share <= macs + 1e-5 for share in shares]
    assert logged_shares[-1] == pytest.approx(shares[-1])
    if rule == "l0":
        logits = np.concatenate([leaf.ravel() for leaf in carried[-1]["logits"]])
        is_open = gates[-1] > 0
        np.testing.assert_allclose(gates[-1][is_open], hard_concrete.fixed(jnp.asarray(logits[is_open])), rtol=1e-5)
        assert logits[is_open].min() > np.median(logits[~is_open]), "the largest chances stay open"
        assert logged_shares[0] > 0.95
        assert abs(logged_shares[end - 1] - macs) < 0.1, "the multipliers hold the expected share to the target"


def test_gates_are_open_as_often_as_their_chance_says() -> None:
    logits = jnp.asarray([-4.0, -1.5, 0.0, 2.5])
    samples = jax.vmap(lambda key: hard_concrete.sample(logits, key))(jax.random.split(jax.random.key(0), 40_000))
    np.testing.assert_allclose((samples > 0).mean(axis=0), hard_concrete.chance(logits), atol=4 * 0.5 / 200)
    assert samples.min() == 0.0
    assert samples.max() == 1.0
    assert ((samples > 0) & (samples < 1)).any()


@pytest.mark.slow
def test_a_batch_in_parts_gives_the_gates_of_the_whole() -> None:
    whole, parts = (train(tb.GradualPrune(0.5), 3, parts=n)[0][-1]["importance"] for n in (1, 4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-9), parts, whole)


@pytest.mark.slow
def test_zeros_stay_zeros_in_the_loss_that_reads_queries_and_keys() -> None:
    """The second stage may be any: also the one whose loss compares scores of all heads."""
    gates = Gates(jnp.ones((2, 4)).at[0, 1].set(0.0), jnp.ones((2, 32)).at[1, 3].set(0.0))
    student = gated(make_params(), gates)
    objective, batch = transformer_objective(CONFIG, CONFIG), rows().batch(np.arange(16), 6, 0)
    targets = objective.targets(make_params(), batch)
    trainable = objective.init(jax.random.key(0), student)
    gradients = jax.grad(lambda tree: objective.loss(tree, targets, batch, tb.Hyper(), None)[0])(trainable)
    attention = gradients["encoder"]["encoder"]["layer"]["attention"]
    for name in ("query", "key", "value"):
        assert not attention["self"][name]["kernel"][0, :, 4:8].any()
        assert not attention["self"][name]["bias"][0, 4:8].any()
        assert attention["self"][name]["kernel"][0, :, :4].any()
    assert not attention["output"]["dense"]["kernel"][0, 4:8].any()
    assert not gradients["encoder"]["encoder"]["layer"]["output"]["dense"]["kernel"][1, 3].any()


def stages(steps: int = 20) -> tuple[tb.Stage, ...]:
    return (
        tb.Stage("transformer", max_steps=steps, learning_rate=1e-3, schedule="constant"),
        tb.Stage("prediction", max_steps=12, learning_rate=1e-3, evaluate_every=6),
    )


@pytest.mark.parametrize(
    "rule", [pytest.param("fisher", marks=pytest.mark.long), pytest.param("l0", marks=pytest.mark.slow)]
)
def test_a_student_is_pruned_in_its_first_stage_and_written_without_what_is_closed(
    rule: Any, teacher: Path, reviews: Path, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from tinybert_jax.export.onnx_model import onnx_model

    experiment = distillation(teacher, teacher, reviews, stages=stages(), compression=(tb.GradualPrune(0.4, rule),))
    result = tb.run(experiment, tmp_path / "run")
    assert result.scores["accuracy"] > 0.8
    (config, params), whole = tb.load_hf(result.directory), tb.load_hf(teacher)
    kept = [line["kept"] for line in logged(tmp_path / "run") if "kept" in line]
    tokens = 10.0
    share = encoder_macs(config, params, tokens) / encoder_macs(*whole, tokens)
    assert 0.33 < share <= 0.41  # a head costs 0.03 of all, and rows here are not of 10 tokens on the mean
    assert kept[-1] <= 0.4 + 1e-5
    assert kept[-1] == kept[-2], "the second stage removes nothing"
    open_gates = read_by_outputs(config, params)
    assert config.num_attention_heads == max(1, int(open_gates.heads.sum(axis=1).max()))
    assert config.intermediate_size == max(1, int(open_gates.units.sum(axis=1).max()))
    assert config.intermediate_size < whole[0].intermediate_size or config.num_attention_heads < 4
    ids = np.arange(5, 13, dtype=np.int32)[None]
    arrays = [jnp.asarray(x) for x in (ids, np.ones_like(ids), 0 * ids)]
    expected = np.asarray(program(config, params)(params, *arrays))
    session = onnxruntime.InferenceSession(onnx_model(config, params).SerializeToString())
    feed = {put.name: np.asarray(x, np.int64) for put, x in zip(session.get_inputs(), arrays, strict=True)}
    np.testing.assert_allclose(session.run(None, feed)[0], expected, atol=2e-6)
    described = json.loads((tmp_path / "run/experiment.json").read_text())["experiment"]["stages"][0]["compression"]
    assert described == [{"name": NAME, "macs": 0.4, "by": rule, "until": 0.7}]
    assert tb.load_predictor(result.directory)(["we bought lovely chips"])[0].label == "good"


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_a_run_that_breaks_off_while_it_prunes_resumes_to_the_same_bits_alone_and_in_a_population(
    rule: Any, teacher: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradual, "EVERY", 4)
    alone = distillation(
        teacher, teacher, reviews, stages=stages(), compression=(tb.GradualPrune(0.4, rule),), checkpoint_every=6
    )
    weights = (tb.run(alone, tmp_path / "alone").directory / "model.safetensors").read_bytes()
    files = resumed_beside_another(alone, tmp_path / "both", lambda log, step: step == 11, monkeypatch)
    assert files[0] == weights
    assert files[1] != weights
    assert [line["step"] for line in logged(tmp_path / "both/member0") if "kept" in line] == [10, 20, 10, 12]


@pytest.mark.long
def test_the_best_state_of_a_stage_that_prunes_is_one_that_is_pruned(
    teacher: Path, reviews: Path, tmp_path: Path
) -> None:
    """The whole model is scored first, and is better than what is left of it."""
    scored = (tb.Stage("prediction", max_steps=10, learning_rate=1e-6, evaluate_every=2),)
    experiment = distillation(teacher, teacher, reviews, stages=scored, compression=(tb.GradualPrune(0.02),))
    result = tb.run(experiment, tmp_path / "run")
    scores = [line["dev/accuracy"] for line in logged(tmp_path / "run") if "dev/accuracy" in line]
    assert scores[0] > 0.95
    assert max(scores[4:]) < 0.95
    assert result.scores["accuracy"] == scores[4]
    assert encoder_macs(*tb.load_hf(result.directory), 10.0) < 0.03 * encoder_macs(*tb.load_hf(teacher), 10.0)


@pytest.mark.slow
def test_a_mesh_that_splits_heads_and_members_prunes_each_member(teacher: Path, reviews: Path, tmp_path: Path) -> None:
    arguments = ["--teacher", teacher, "--student", teacher, "--task", "classification", "--data", reviews]
    arguments += ["--max-length", 16, "--prune", 0.4, "--gradual", "fisher", "--transformer-steps", 12]
    arguments += ["--prediction-steps", 4, "--population", 2, "--mesh", "model=2,member=2", "--no-report"]
    arguments += ["--out", tmp_path / "run"]
    command = [sys.executable, "-m", "tinybert_jax.cli", "distill", *map(str, arguments)]
    ended = subprocess.run(command, env=on_devices(4), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    for member in ("member0", "member1"):
        left = encoder_macs(*tb.load_hf(tmp_path / "run" / member / "student"), 10.0)
        assert left < 0.41 * encoder_macs(*tb.load_hf(teacher), 10.0)


@pytest.mark.long
@pytest.mark.parametrize("method", [tb.GradualPrune(0.4), tb.Movement(0.4)])
def test_students_that_are_compressed_already_are_refused(
    method: Any, teacher: Path, reviews: Path, tmp_path: Path
) -> None:
    source = tb.DataSource(data=str(reviews))
    for name, first in (("pruned", tb.Prune(0.5, rounds=1)), ("factors", tb.LowRank(0.5))):
        tb.compress(str(teacher), "classification", source, [first], tmp_path / name, max_length=16)
    experiment = distillation(teacher, tmp_path / "factors", reviews, stages=stages(), compression=(method,))
    with pytest.raises(tb.InputError, match=f"{method.name} cannot follow low rank: the dense layers are factors"):
        tb.run(experiment, tmp_path / "run")
    if isinstance(method, tb.GradualPrune):
        experiment = distillation(teacher, tmp_path / "pruned", reviews, stages=stages(), compression=(method,))
        with pytest.raises(tb.InputError, match="needs a whole model, and this one is pruned already"):
            tb.run(experiment, tmp_path / "run")


def test_what_makes_no_sense_is_refused(teacher: Path, reviews: Path, tmp_path: Path) -> None:
    method = tb.GradualPrune(0.4)
    short = distillation(teacher, teacher, reviews, stages=stages(9), compression=(method,))
    with pytest.raises(
        tb.InputError, match=r"'gradual_prune' acts while its stage trains, in at least 10 steps, and .* 9"
    ):
        tb.run(short, tmp_path / "run")
    with pytest.raises(tb.InputError, match="'gradual_prune' cannot stand behind 'gradual_prune', which acts"):
        tb.run(
            distillation(teacher, teacher, reviews, stages=stages(), compression=(method, method)), tmp_path / "run"
        )
    with pytest.raises(tb.InputError, match="'gradual_prune' acts while a model is trained, and here none is"):
        tb.compress(str(teacher), "classification", tb.DataSource(data=str(reviews)), [method], tmp_path / "out")
    for changes, message in (({"macs": 1.0}, "macs is 1.0"), ({"until": 1.0}, "until is")):
        with pytest.raises(tb.InputError, match=message):
            tb.GradualPrune(**changes)
