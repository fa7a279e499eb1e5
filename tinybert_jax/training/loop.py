"""One stage of a run: its objective, and the one host loop that every stage runs through."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from tinybert_jax.batch import Batch, Examples, Params
from tinybert_jax.compression.method import Method
from tinybert_jax.compression.table import build_method
from tinybert_jax.data.batches import stage_steps, steps_per_epoch, train_batches
from tinybert_jax.data.queries import Queries
from tinybert_jax.devices import processes
from tinybert_jax.devices.sharding import batch_sharding, fetch, global_batch, local_rows, place
from tinybert_jax.objectives.objective import Context, Objective
from tinybert_jax.objectives.table import build_objective
from tinybert_jax.settings.arithmetic import arithmetic
from tinybert_jax.settings.experiment import Experiment
from tinybert_jax.settings.sources import CorpusSource
from tinybert_jax.settings.stages import Stage
from tinybert_jax.tasks.split import Split
from tinybert_jax.teachers.cache import OverLimit
from tinybert_jax.training import optim, population
from tinybert_jax.training.checkpoint import Checkpoints
from tinybert_jax.training.cost import Cost, seconds_per_step, step_flops
from tinybert_jax.training.diverged import DivergedMembers
from tinybert_jax.training.inputs import Inputs
from tinybert_jax.training.logs import StageLog
from tinybert_jax.training.step import (
    TrainState,
    create_state,
    finite_members,
    make_end_members,
    make_keep_best,
    make_member_params,
    make_train_step,
)
from tinybert_jax.training.teaching import target_cache

MOST_SCORES = 20  # largest number of evaluations of a stage without `evaluate_every`


class Stopped(Exception):
    """The run was asked to stop by a signal; its state is saved and can be resumed."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number


class Run(NamedTuple):
    """What all stages of a run share."""

    experiments: Sequence[Experiment]  # one for each member of the population
    inputs: Inputs  # the first member's; the loop reads only what all members share
    teacher_params: Params  # on the mesh; {} if no teacher model runs in the step
    taught: Examples | None  # the training rows with the teacher's outputs, if these are computed in advance
    score: Callable[[Params, Split], dict[str, float]]
    mesh: Mesh
    out: Path
    diverged: DivergedMembers


def steps_between_scores(stage: Stage, rows: int) -> int:
    """The number of steps between evaluations of a stage: `evaluate_every`, or else one epoch.

    With few rows, an epoch may be shorter than an evaluation. So a stage without `evaluate_every` is evaluated at most
    `MOST_SCORES` times.
    """
    if stage.evaluate_every is not None:
        return stage.evaluate_every
    return max(steps_per_epoch(rows, stage.batch_size), -(-stage_steps(stage, rows) // MOST_SCORES))


def methods_in(experiment: Experiment, index: int) -> list[Method]:
    """The methods that change the objective of a stage: those of the stage, and unfinished ones of earlier stages."""
    acting: list[Method] = []
    for stage in experiment.stages[: index + 1]:
        if stage.compression:
            acting = [method for method in acting if method.finish is None]
            acting += [build_method(settings) for settings in stage.compression]
    return acting


def make_objective(experiment: Experiment, index: int, inputs: Inputs) -> Objective:
    """The objective of stage number `index`, from 0.

    Raises:
        InputError: teacher and student do not fit together, or there is a temperature in a task without classes.
    """
    stage = experiment.stages[index]
    model = None if inputs.knows_outputs and stage.objective.reads_outputs else inputs.teacher_model
    teacher = None if model is None else model.config
    facts = arithmetic(experiment.preset)
    by_query = inputs.passages is not None
    context = Context(inputs.config, teacher, inputs.head, experiment.layer_map, facts, inputs.compute, by_query)
    objective = build_objective(stage.objective, context)
    for method in methods_in(experiment, index):
        objective = method.wrap(objective, inputs.config, inputs.train)
    return objective


def check_params(objectives: Sequence[Objective], params: Sequence[Params]) -> None:
    """Check, by shapes alone, that the stages' objectives can train the members' parameters one after the other.

    Raises:
        InputError: projections do not have the teacher's width, or the members' parameters have different shapes.
    """
    for objective in objectives:
        trainables = [jax.eval_shape(objective.init, jax.random.key(0), member) for member in params]
        jax.eval_shape(population.stack, trainables)
        params = [jax.eval_shape(objective.export, *pair) for pair in zip(trainables, params, strict=True)]


def train_stage(run: Run, index: int, params: list[Params]) -> list[Params]:
    """Train a stage, from its newest checkpoint if there is one, and return the members' parameters.

    A member that diverged gets the parameters of another one, so that later stages compute with finite numbers.

    Raises:
        InputError: the teacher's outputs cannot be cached.
        Stopped: a stop signal came.
        Diverged: the loss, gradient or parameters of all members are not finite.
    """
    experiment = run.experiments[0]
    stage = experiment.stages[index]
    name = f"{index + 1}-{stage.objective.name}"
    objective = make_objective(experiment, index, run.inputs)
    state = _initial_state(run, index, objective, params)
    with contextlib.closing(Checkpoints(run.out / "checkpoints" / name)) as checkpoints:
        restored = checkpoints.restore(state)
        if restored is not None:
            state = restored
            if len(params) > 1:
                run.diverged.restore(finite_members(run.mesh, state), name)
        state = _train(run, index, name, objective, params, state, checkpoints, announce=restored is None)
    trained = fetch(state.best_params if stage.objective.trains_head else state.trainable)
    living = run.diverged.living
    exported = {i: objective.export(population.member(trained, i), params[i]) for i in living}
    return [exported.get(i, exported[living[0]]) for i in range(len(params))]


def _train(
    run: Run,
    index: int,
    name: str,
    objective: Objective,
    initial: list[Params],
    state: TrainState,
    checkpoints: Checkpoints,
    announce: bool,
) -> TrainState:
    """Train from a state to the stage's last step. On raw text, print the expected cost first if `announce`."""
    experiment, inputs, mesh = run.experiments[0], run.inputs, run.mesh
    stage, done = experiment.stages[index], int(np.max(state.step))
    examples, teacher_params = _examples(run, stage, objective, done)
    total = stage_steps(stage, len(examples))

    def hyper_of(step: int) -> Any:
        """The arguments of a step, counted from 1, for all members."""
        return population.stack([member.stages[index].hyper_at((step - 1) / total) for member in run.experiments])

    # the Transformer stage trains no head, so it cannot be scored and keeps its last state, not its best
    scored = stage.objective.trains_head
    evaluate_every = steps_between_scores(stage, len(examples))
    # in a stage of one step, a warm-up would make its only update zero
    schedule = optim.make_schedule(stage.schedule, stage.warmup_ratio if total > 1 else 0.0)
    optimizer = _optimizer(experiment, stage)
    train_step = make_train_step(objective, optimizer, schedule, mesh, state, teacher_params, stage.accumulation_steps)
    keep_best, member_params = make_keep_best(mesh, state, objective.settled), make_member_params(mesh, state)
    end_members = make_end_members(mesh, state)
    if isinstance(experiment.source, CorpusSource) and announce:
        print(
            f"{name}: {_cost(run, stage, objective, train_step, state, examples, teacher_params, hyper_of(1))}",
            flush=True,
        )

    def scored_state(state: TrainState, step: int, log: StageLog) -> TrainState:
        """The state after the members are scored on the dev set: the best parameters so far are kept."""
        scores = {}
        for i in run.diverged.living:
            with run.diverged.ended_by(i, name, step):
                model = objective.export(member_params(state.trainable, i), initial[i])
                scores[i] = run.score(model, inputs.dev["dev"])
        reached = log.scores(step, scores, inputs.dev["dev"].selection)
        return keep_best(state, np.asarray(reached, np.float32))

    part = local_rows(mesh, stage.batch_size)
    batches = train_batches(examples, stage.batch_size, inputs.buckets, experiment.order_seed, done, total, part)
    stage_log = StageLog(run.out, run.diverged, name, done, total)
    with contextlib.closing(stage_log) as log, processes.stop_requests(mesh) as stop:
        flops: dict[tuple[int, ...], float] = {}  # of a step, by its batch's shape; it is compiled once for each
        for step, local in enumerate(batches, done + 1):
            batch = global_batch(mesh, local, stage.batch_size)
            state, numbers = train_step(state, teacher_params, batch, hyper_of(step))
            shape = batch.input_ids.shape
            if shape not in flops:
                flops[shape] = _flops(run, objective, batch)
                log.compiled()
            log.step(step, batch.input_ids.size, flops[shape], numbers)
            checkpoints.check()
            stopping = stop.agreed(last=step == total)
            score_now = scored and (step % evaluate_every == 0 or step == total)
            if score_now or stopping or step % experiment.checkpoint_every == 0 or step == total:
                log.flush()  # raises before a state that is not finite is saved
                if score_now:
                    state = scored_state(state, step, log)
                if any(run.diverged.flags):
                    state = end_members(state, np.asarray(run.diverged.flags))
                checkpoints.save(step, state)
                log.restart_clock()
            if stopping:
                break
        else:  # a stop signal during the last step also cancels the next stage
            del batches  # here, because a KeyboardInterrupt is lost if it comes while Python deletes an object
            stopping = stop.agreed(last=True) if index + 1 < len(experiment.stages) else 0
        checkpoints.finish()
        if stopping:
            step = int(np.max(state.step))
            message = f"stopped in stage {name} after step {step} of {total}; everything is saved in {run.out}"
            raise Stopped(message, stopping)
    return state


def _examples(run: Run, stage: Stage, objective: Objective, done: int) -> tuple[Examples, Params]:
    """The examples of a stage's batches, and the teacher's parameters: {} if the examples have its outputs.

    Outputs are cached if a model teaches, and the stage is to read its rows again.
    """
    as_batched = batching(run.inputs, stage)
    if run.taught is not None and stage.objective.reads_outputs:
        return as_batched(run.taught), {}
    rows, teacher_params = run.inputs.examples(stage), run.teacher_params
    examples = as_batched(rows)
    total = stage_steps(stage, len(examples))
    if done < total and objective.reads_teacher and total > steps_per_epoch(len(examples), stage.batch_size):
        rows, teacher_params = _with_cached_targets(run, stage, objective, rows)
        examples = as_batched(rows)
    return examples, teacher_params


def batching(inputs: Inputs, stage: Stage) -> Callable[[Examples], Examples]:
    """A function from rows to the examples of the stage's batches: the same rows, or queries with their passages."""
    if (size := stage.objective.group_size) is None:
        return lambda rows: rows
    assert inputs.passages is not None, "build_objective allows it on queries only"
    return functools.partial(Queries, groups=inputs.passages.groups(size))


def _optimizer(experiment: Experiment, stage: Stage) -> Any:
    return optim.make_optimizer(arithmetic(experiment.preset).optimizer, stage.weight_decay)


def _initial_state(run: Run, index: int, objective: Objective, params: list[Params]) -> TrainState:
    initial, keys = [], []
    for member, before in zip(run.experiments, params, strict=True):
        # a key for each stage and use; the order of the rows depends on the seed alone, and is the same in all stages
        init_key, dropout_key = (jax.random.fold_in(jax.random.key(member.seed), 2 * index + i) for i in (1, 2))
        initial.append(objective.init(init_key, before))
        keys.append(dropout_key)
    stage = run.experiments[0].stages[index]
    optimizer, scored = _optimizer(run.experiments[0], stage), stage.objective.trains_head
    return create_state(population.stack(initial), optimizer, population.stack(keys), run.mesh, scored)


def _with_cached_targets(run: Run, stage: Stage, objective: Objective, examples: Examples) -> tuple[Examples, Params]:
    """The rows with cached teacher outputs, and {} as teacher parameters; both unchanged if the cache is too small."""
    experiment, inputs = run.experiments[0], run.inputs
    named, teacher = stage.objective.name, inputs.layer_teacher
    assert teacher is not None, "a model teaches"
    cache = target_cache(experiment, inputs, objective, named, teacher, run.teacher_params, run.mesh)
    try:
        return cache.with_targets(examples, 1e9 * experiment.teacher_cache_gb), {}
    except OverLimit as needed:
        if experiment.teacher_cache_gb and processes.is_primary():
            limit = f"--teacher-cache-gb {experiment.teacher_cache_gb:g}"
            print(
                f"{stage.objective.name}: the teacher's outputs {needed}, and {limit}: it runs in every step",
                flush=True,
            )
        return examples, run.teacher_params


def _cost(
    run: Run,
    stage: Stage,
    objective: Objective,
    train_step: Callable[..., Any],
    state: TrainState,
    examples: Examples,
    teacher_params: Params,
    hyper: Any,
) -> Cost:
    """The cost of the whole stage, computed as if all sequences had the full length."""
    length, total = run.experiments[0].max_length, stage_steps(stage, len(examples))
    rows = np.arange(stage.batch_size, dtype=np.int64) % len(examples)
    batch = examples.batch(rows, length, 0)
    batch = place(batch, jax.tree.map(lambda _: batch_sharding(run.mesh), batch))
    seconds = seconds_per_step(train_step, state, teacher_params, batch, hyper)
    return Cost(total, total * _flops(run, objective, batch), seconds)


def _flops(run: Run, objective: Objective, batch: Batch) -> float:
    """Floating-point operations of a step on a batch."""
    *rows, length = batch.input_ids.shape  # rankings have passages for each row
    return step_flops(objective, math.prod(rows), length, len(run.experiments), batch.targets is not None)
