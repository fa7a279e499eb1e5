"""Populations: a member's run is its run alone, and what cannot train together is refused."""

from __future__ import annotations

import dataclasses
import itertools
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import distillation, write_scored_reviews
from step_test import STUDENT, TEACHER, make_batch

import tinybert_jax as tb
from tinybert_jax.devices import sharding
from tinybert_jax.objectives.objective import Objective
from tinybert_jax.objectives.prediction import prediction_objective
from tinybert_jax.objectives.transformer import transformer_objective
from tinybert_jax.settings.arithmetic import arithmetic
from tinybert_jax.settings.choices import OptimizerName, Preset
from tinybert_jax.students import start
from tinybert_jax.training import chain, loop, optim, population, step
from tinybert_jax.training.checkpoint import Checkpoints
from tinybert_jax.training.diverged import Diverged
from tinybert_jax.training.inputs import initial_params, load_population
from tinybert_jax.training.loop import Stopped
from tinybert_jax.training.step import create_state, make_train_step

NUMBERS = {"temperature": 1.0, "embedding_weight": 1.0, "attention_weight": 1.0, "hidden_weight": 1.0}
HYPERS = [
    tb.Hyper(1e-2, NUMBERS),
    tb.Hyper(3e-3, NUMBERS | {"temperature": 2.0, "attention_weight": 0.0}),
    tb.Hyper(1e-2, NUMBERS | {"hidden_weight": 0.5}),
]


class Steps:
    """Three steps of an objective, compiled once for each number of members."""

    def __init__(self, objective: Objective, parts: int = 1, optimizer: OptimizerName = "adamw") -> None:
        self._objective, self._parts = objective, parts
        self._mesh, self._optimizer = sharding.make_mesh(), optim.make_optimizer(optimizer)
        self._teacher = tb.init_params(tb.BertForSequenceClassification(TEACHER), jax.random.key(0))
        self._compiled: dict[int, Any] = {}

    def run(self, students: list[Any], hypers: list[tb.Hyper]) -> Any:
        """The state and the metrics after three steps of a population."""
        params = population.stack([self._objective.init(jax.random.key(2), student) for student in students])
        keys = population.stack([jax.random.key(int(hyper.numbers["temperature"])) for hyper in hypers])
        state = create_state(params, self._optimizer, keys, self._mesh)
        if len(students) not in self._compiled:
            schedule = optim.make_schedule("linear")
            self._compiled[len(students)] = make_train_step(
                self._objective, self._optimizer, schedule, self._mesh, state, self._teacher, self._parts
            )
        for done in range(3):
            stacked = population.stack([hyper._replace(progress=done / 10) for hyper in hypers])
            state, metrics = self._compiled[len(students)](state, self._teacher, make_batch(), stacked)
        return jax.device_get((state._replace(key=jax.random.key_data(state.key)), metrics))


def make_students(n: int) -> list[Any]:
    model = tb.BertForSequenceClassification(STUDENT)
    return [tb.init_params(model, jax.random.key(10 + i)) for i in range(n)]


@pytest.mark.parametrize(
    "kind",
    ["transformer", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("prediction", "in parts", "official"))],
)
def test_each_member_of_a_step_is_its_run_alone_bit_for_bit(kind: str) -> None:
    make = prediction_objective if kind == "prediction" else transformer_objective
    preset: Preset = "official" if kind == "official" else "default"
    objective, students = make(STUDENT, TEACHER, preset=preset), make_students(3)
    steps = Steps(objective, 2 if kind == "in parts" else 1, arithmetic(preset).optimizer)
    together = steps.run(students, HYPERS)
    assert len(set(together[1]["loss"].tolist())) == 3
    for i in range(3):
        alone = steps.run([students[i]], [HYPERS[i]])
        jax.tree.map(np.testing.assert_array_equal, population.member(together, i), population.member(alone, 0))


@pytest.mark.long
def test_all_members_at_once_agree_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """`vmap` takes the place of one after the other; loss and gradient norm of the third step agree."""
    objective, students = transformer_objective(STUDENT, TEACHER), make_students(3)
    one_by_one = Steps(objective).run(students, HYPERS)
    monkeypatch.setattr(step, "over_members", lambda function, mesh: jax.vmap(function))
    at_once = Steps(objective).run(students, HYPERS)
    np.testing.assert_allclose(at_once[1]["loss"], one_by_one[1]["loss"], rtol=1e-5)
    np.testing.assert_allclose(at_once[1]["gradient_norm"], one_by_one[1]["gradient_norm"], rtol=1e-5)


def test_members_with_other_parameters_are_refused_by_name() -> None:
    objective, plain = transformer_objective(STUDENT, TEACHER), make_students(1)[0]
    shape = (STUDENT.hidden_size, TEACHER.hidden_size)
    brings = plain | {"fit_dense": {"kernel": np.zeros(shape, np.float32), "bias": np.zeros(shape[1], np.float32)}}
    trees = [objective.init(jax.random.key(0), student) for student in (plain, brings)]
    with pytest.raises(tb.InputError, match=r"member 1 of .* the same .*projections.* is in one of them"):
        population.stack(trees)


def test_what_members_take_from_the_teacher_at_their_start_is_computed_once(
    teacher: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts, from_teacher = [], start.from_teacher
    monkeypatch.setattr(start, "from_teacher", lambda *args: starts.append(args[0]) or from_teacher(*args))
    first = tb.Experiment(
        task="classification",
        source=tb.DataSource(data=str(reviews)),
        model="tinybert-3l-192d",
        teacher=str(teacher),
        stages=(tb.Stage("transformer"),),
        max_length=16,
    )
    experiments = [dataclasses.replace(first, seed=seed, data_seed=0) for seed in range(3)]
    params = initial_params(experiments, load_population(experiments))
    assert starts == ["random"]
    kernels = [np.asarray(member_params["classifier"]["kernel"]) for member_params in params]
    assert not np.array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[1], kernels[2])


@pytest.mark.long
def test_the_teacher_is_computed_once_for_all_members() -> None:
    """The calls are counted while the step runs."""
    objective, mesh = prediction_objective(STUDENT, TEACHER), sharding.make_mesh()
    calls = []

    def targets(teacher_params: Any, batch: tb.Batch) -> Any:
        jax.debug.callback(lambda: calls.append(1))
        return objective.targets(teacher_params, batch)

    counting, optimizer = objective._replace(targets=targets), optim.make_optimizer("adamw")
    teacher = tb.init_params(tb.BertForSequenceClassification(TEACHER), jax.random.key(0))
    keys = population.stack([jax.random.key(i) for i in range(3)])
    state = create_state(population.stack(make_students(3)), optimizer, keys, mesh)
    step = make_train_step(counting, optimizer, optim.make_schedule("constant"), mesh, state, teacher)
    jax.block_until_ready(step(state, teacher, make_batch(), population.stack(HYPERS)))
    jax.effects_barrier()
    assert calls == [1]


def make_experiments(pretrained: Path, teacher: Path, reviews: Path) -> list[tb.Experiment]:
    """Three students of one shape, that differ in start, seed and numbers."""
    stages = (
        tb.Stage("transformer", max_steps=4, learning_rate=1e-3),
        tb.Stage("prediction", max_steps=12, learning_rate=3e-3, evaluate_every=4),
    )
    first = distillation(teacher, pretrained, reviews, stages=stages)
    slow = tuple(dataclasses.replace(stage, learning_rate=1e-4) for stage in first.stages)
    slow = (slow[0], dataclasses.replace(slow[1], objective=tb.Prediction(temperature=2.0)))
    return [first, dataclasses.replace(first, seed=1, data_seed=0), dataclasses.replace(first, stages=slow)]


@pytest.fixture(scope="module")
def together(
    blank_student: Path, teacher: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[tb.Experiment], Path, list[Any]]:
    """The three as a population: experiments, directory, results."""
    experiments, out = make_experiments(blank_student, teacher, reviews), tmp_path_factory.mktemp("together") / "run"
    return experiments, out, tb.run_population(experiments, out)


def weights(result: Any) -> bytes:
    return (result.directory / "model.safetensors").read_bytes()


@pytest.mark.long
def test_each_member_of_a_run_is_its_run_alone_bit_for_bit(together: Any, tmp_path: Path) -> None:
    experiments, out, results = together
    assert len({weights(result) for result in results}) == 3
    for i in (1, 2):
        alone = tb.run(experiments[i], tmp_path / str(i))
        assert weights(alone) == weights(results[i])
        assert alone.scores == results[i].scores
        logged = [path / "metrics.jsonl" for path in (tmp_path / str(i), out / f"member{i}")]
        assert logged[0].read_text() == logged[1].read_text()


@pytest.mark.long
def test_a_population_that_was_stopped_resumes_to_the_same_bits(
    together: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiments, _, whole = together
    steps = iter([False] * 10 + [True])  # in the second stage, after an evaluation
    with monkeypatch.context() as patch:
        patch.setattr("tinybert_jax.devices.processes.StopRequests.agreed", lambda self, last: next(steps))
        with pytest.raises(Stopped, match="2-prediction after step 6"):
            tb.run_population(experiments, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "member2")  # as of a run that was killed before it made them
    resumed = tb.run_population(experiments, tmp_path / "run", resume=True)
    assert [weights(result) for result in resumed] == [weights(result) for result in whole]
    with pytest.raises(tb.InputError, match=r"cannot resume: experiment\.2\."):
        tb.run_population(experiments[:2], tmp_path / "run", resume=True)


def diverging(experiments: list[tb.Experiment], number: int, stage: int) -> list[tb.Experiment]:
    """The experiments, of which one has a rate in a stage that gives it infinite parameters."""
    stages = list(experiments[number].stages)
    stages[stage] = dataclasses.replace(stages[stage], learning_rate=1e30)
    changed = dataclasses.replace(experiments[number], stages=tuple(stages))
    return [*experiments[:number], changed, *experiments[number + 1 :]]


@pytest.mark.long
@pytest.mark.parametrize(("stage", "named"), [(0, "1-transformer"), (1, "2-prediction")])
def test_a_member_that_diverges_ends_alone_and_the_others_are_as_without_it(
    stage: int, named: str, together: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    experiments, out, whole = together
    results = tb.run_population(diverging(experiments, 1, stage), tmp_path / "run")
    lost = (
        rf"member 1 \(seed 1, .*stages.{stage}.learning_rate 1e\+30.*\) diverged at step 2 of stage {named}: .* is inf"
    )
    assert re.match(lost, str(results[1].diverged))
    assert f"warning: {results[1].diverged}; the other members go on" in capsys.readouterr().err
    assert results[1].scores == {}
    assert not results[1].directory.exists()
    said = (tmp_path / "run" / "member1" / "diverged.txt").read_text().splitlines()
    assert said[0] == results[1].diverged
    for i in (0, 2):
        assert results[i].diverged is None
        assert weights(results[i]) == weights(whole[i])
        assert results[i].scores == whole[i].scores
        logged = [path / f"member{i}" / "metrics.jsonl" for path in (tmp_path / "run", out)]
        assert logged[0].read_text() == logged[1].read_text()


@pytest.mark.long
def test_who_asks_while_a_stages_last_step_is_saved_does_not_get_the_next_stage(
    together: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiments, _, whole = together
    save = Checkpoints.save

    def asked_meanwhile(self: Checkpoints, *args: Any) -> None:
        save(self, *args)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", asked_meanwhile)
        with pytest.raises(Stopped, match="1-transformer after step 4 of 4"):
            tb.run(experiments[1], tmp_path / "run")
    assert weights(tb.run(experiments[1], tmp_path / "run", resume=True)) == weights(whole[1])


@pytest.mark.long
def test_a_stop_signal_is_not_lost_while_the_batches_of_a_stage_are_deleted(
    together: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python ignores KeyboardInterrupt in `__del__`."""
    train_batches = loop.train_batches

    class Batches:
        def __init__(self, *args: Any) -> None:
            self._batches = train_batches(*args)

        def __iter__(self) -> Any:
            return self._batches

        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_batches", Batches)
        with pytest.raises(Stopped, match="1-transformer after step 4 of 4"):
            tb.run(together[0][1], tmp_path / "run")


@pytest.mark.long
@pytest.mark.parametrize(
    ("stage", "done", "stopped"),
    [(0, 10, "2-prediction after step 6"), (1, 10, "2-prediction after step 6"), (1, 5, "2-prediction after step 1")],
)
def test_a_population_of_which_a_member_diverged_resumes_to_the_same_bits(
    stage: int, done: int, stopped: str, together: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiments, _, whole = together
    changed, steps = diverging(experiments, 1, stage), iter([False] * done + [True])
    with monkeypatch.context() as patch:
        patch.setattr("tinybert_jax.devices.processes.StopRequests.agreed", lambda self, last: next(steps))
        with pytest.raises(Stopped, match=stopped):
            tb.run_population(changed, tmp_path / "run")
    said = tmp_path / "run" / "member1" / "diverged.txt"
    assert said.exists() == (done > 5)
    (tmp_path / "run" / "member2" / "diverged.txt").write_text("of a run that was killed after its last checkpoint")
    resumed = tb.run_population(changed, tmp_path / "run", resume=True)
    assert resumed[1].diverged == said.read_text().splitlines()[0]
    assert [result.diverged is None for result in resumed] == [True, False, True]
    assert [weights(resumed[i]) for i in (0, 2)] == [weights(whole[i]) for i in (0, 2)]
    assert not (tmp_path / "run" / "member2" / "diverged.txt").exists()


@pytest.mark.long
def test_outputs_that_are_not_finite_end_their_member_alone_also_when_it_is_resumed(
    together: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parameters are finite then, and made NaN in the checkpoint, so that it is known."""
    experiments, _, whole = together
    scored, predict = itertools.count(), chain.predict_logits
    steps = iter([False] * 10 + [True])
    with monkeypatch.context() as patch:
        patch.setattr("tinybert_jax.devices.processes.StopRequests.agreed", lambda self, last: next(steps))
        patch.setattr(chain, "predict_logits", lambda *args: predict(*args) * (np.nan if next(scored) == 2 else 1))
        with pytest.raises(Stopped, match="2-prediction after step 6"):
            tb.run_population(experiments, tmp_path / "run")
    resumed = tb.run_population(experiments, tmp_path / "run", resume=True)
    assert "diverged at step 4 of stage 2-prediction: the model's outputs are not finite" in str(resumed[2].diverged)
    assert [weights(resumed[i]) for i in (0, 1)] == [weights(whole[i]) for i in (0, 1)]


@pytest.mark.long
def test_a_run_ends_when_its_last_member_diverges(together: Any, tmp_path: Path) -> None:
    experiments = diverging(diverging(diverging(together[0], 0, 1), 1, 0), 2, 1)
    with pytest.raises(
        Diverged, match=r"step 2 of member 0: .* is .*; the checkpoints before it are sound. Start a new"
    ):
        tb.run_population(experiments, tmp_path / "run")
    told = [(tmp_path / "run" / f"member{i}" / "diverged.txt").exists() for i in range(3)]
    assert told == [False, True, False]


@pytest.mark.long
def test_a_method_behind_a_stage_in_which_a_member_diverged_acts_on_the_others(
    together: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A singular value decomposition of NaN would end the run."""
    first = together[0][0]
    stages = (first.stages[0], dataclasses.replace(first.stages[1], compression=(tb.LowRank(0.5),), max_steps=4))
    first = dataclasses.replace(first, stages=stages)
    results = tb.run_population(diverging([first, first], 0, 0), tmp_path / "run")
    assert [result.diverged is None for result in results] == [False, True]
    printed = capsys.readouterr().out
    assert "member1: " in printed
    assert "member0: low_rank" not in printed
    assert weights(results[1]) == weights(tb.run(first, tmp_path / "alone"))


@pytest.mark.long
def test_a_member_that_is_not_finite_changes_no_bit_of_others_that_are_computed_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(step, "over_members", lambda function, mesh: jax.vmap(function))
    steps, students = Steps(transformer_objective(STUDENT, TEACHER)), make_students(3)
    finite = steps.run(students, HYPERS)
    students[1] = jax.tree.map(lambda leaf: leaf * np.float32("nan"), students[1])
    lost = steps.run(students, HYPERS)
    assert np.isnan(lost[1]["loss"]).tolist() == [False, True, False]
    for i in (0, 2):
        jax.tree.map(np.testing.assert_array_equal, population.member(lost, i), population.member(finite, i))


def test_what_cannot_train_together_is_refused(pretrained: Path, blank_student: Path, tmp_path: Path) -> None:
    experiments = make_experiments(blank_student, pretrained, tmp_path)
    with pytest.raises(tb.InputError, match="at least one member"):
        population.check_members([])
    with pytest.raises(tb.InputError, match="member 1 of the population has data_seed 1, and member 0 0; members may"):
        population.check_members([experiments[0], dataclasses.replace(experiments[0], seed=1)])
    with pytest.raises(tb.InputError, match="member 2 of the population has max_length 32, and member 0 16"):
        population.check_members([*experiments[:2], dataclasses.replace(experiments[0], max_length=32)])
    longer = tuple(dataclasses.replace(stage, max_steps=9) for stage in experiments[0].stages)
    with pytest.raises(tb.InputError, match="member 1 of the population has stages"):
        population.check_members([experiments[0], dataclasses.replace(experiments[0], stages=longer)])


@pytest.mark.parametrize("wrong", [0, 1])
def test_what_is_wrong_with_any_member_is_refused(wrong: int, pretrained: Path, reviews: Path, tmp_path: Path) -> None:
    write_scored_reviews(tmp_path, reviews)
    config, _ = tb.load_hf(pretrained)
    config = dataclasses.replace(config, id2label=("LABEL_0",), problem_type="regression")
    params = tb.init_params(tb.BertForSequenceClassification(config), jax.random.key(0))
    tb.save_hf(tmp_path / "teacher", config, params, tb.load_tokenizer(pretrained, config))
    members = [
        tb.Experiment(
            task="regression",
            source=tb.DataSource(data=str(tmp_path)),
            model=str(pretrained),
            teacher=str(tmp_path / "teacher"),
            stages=(tb.Stage(tb.Prediction(temperature=4.0 if i == wrong else 1.0), max_steps=1),),
            max_length=16,
            seed=i,
            data_seed=0,
        )
        for i in (0, 1)
    ]
    with pytest.raises(tb.InputError, match=r"temperature is 4.0; it is for classes, and a number has none"):
        tb.run_population(members, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_members_of_other_shapes_are_refused(
    pretrained: Path, blank_student: Path, teacher: Path, reviews: Path, tmp_path: Path
) -> None:
    first = make_experiments(blank_student, teacher, reviews)[0]
    with pytest.raises(tb.InputError, match=f"{pretrained}: is of another shape or vocabulary than {blank_student}"):
        tb.run_population([first, dataclasses.replace(first, model=str(pretrained))], tmp_path / "run")
