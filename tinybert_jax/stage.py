"""One stage of a run: its objective, and the one host loop that every stage runs through."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from tinybert_jax import data, distill, optim, population, processes, run_dir, teacher_cache
from tinybert_jax.checkpoint import Checkpoints
from tinybert_jax.config import InputError, Params
from tinybert_jax.cost import Cost, seconds_per_step, step_flops
from tinybert_jax.data import Examples
from tinybert_jax.experiment import CorpusSource, Experiment, Stage
from tinybert_jax.inputs import Inputs
from tinybert_jax.sharding import batch_sharding, fetch, global_batch, local_rows, place
from tinybert_jax.splits import Split
from tinybert_jax.train_step import TrainState, create_state, make_keep_best, make_own_params, make_train_step

LOG_EVERY = 10  # steps
SCORED = ("supervised", "prediction")  # the objectives that train the task's head


class Stopped(Exception):
    """The run was asked to stop; its state is saved and can be resumed."""


class Diverged(Exception):
    """The loss, the gradient or the parameters are not finite; the checkpoints are sound."""


class Run(NamedTuple):
    """What all stages of a run share."""

    experiments: Sequence[Experiment]  # of each member of the population
    inputs: Inputs  # of the first member, for all that they share
    teacher_params: Params  # on the mesh; none where there is no teacher
    score: Callable[[Params, Split], dict[str, float]]
    eval_batch_size: int
    mesh: Mesh
    out: Path


def stage_steps(stage: Stage, rows: int) -> int:
    """The number of steps of a stage over that many training rows."""
    steps = stage.epochs * data.steps_per_epoch(rows, stage.batch_size)
    return steps if stage.max_steps is None else min(steps, stage.max_steps)


def make_objective(experiment: Experiment, stage: Stage, inputs: Inputs) -> distill.Objective:
    """The objective of a stage.

    Raises:
        InputError: teacher and student do not fit each other, or a temperature is given for a task without classes.
    """
    if stage.temperature != 1 and inputs.head == "sequence" and inputs.config.num_labels == 1:
        raise InputError(
            f"temperature is {stage.temperature}; it is for classes, and task {experiment.task!r} has none"
        )
    if stage.objective == "supervised":
        return distill.supervised_objective(inputs.config, inputs.head)
    if stage.objective == "masked_lm":
        return distill.masked_lm_objective(inputs.config)
    assert inputs.teacher is not None, "Experiment asks for a teacher where a stage distils"
    teacher = inputs.teacher.config
    if stage.objective == "transformer":
        return distill.transformer_objective(inputs.config, teacher, experiment.layer_map, experiment.preset)
    return distill.prediction_objective(inputs.config, teacher, experiment.preset, inputs.head)


def check_params(objectives: Sequence[distill.Objective], params: Sequence[Params]) -> None:
    """Refuse, by their shapes, what the stages' objectives cannot train one after the other.

    Raises:
        InputError: projections do not lead to the teacher's width, or the members' parameters are unlike.
    """
    for objective in objectives:
        trainables = [jax.eval_shape(objective.init, jax.random.key(0), own) for own in params]
        jax.eval_shape(population.stack, trainables)
        params = [jax.eval_shape(objective.export, *pair) for pair in zip(trainables, params, strict=True)]


def train_stage(run: Run, index: int, params: list[Params]) -> list[Params]:
    """Run a stage, or what is left of it, and return the members' parameters after it.

    Raises:
        InputError: the teacher's outputs cannot be kept.
        Stopped: a signal came.
        Diverged: a member's loss, gradient or parameters are not finite.
    """
    experiment, members = run.experiments[0], len(run.experiments)
    stage = experiment.stages[index]
    name = f"{index + 1}-{stage.objective}"
    objective = make_objective(experiment, stage, run.inputs)
    state = _initial_state(run, index, objective, params)
    with contextlib.closing(Checkpoints(run.out / "checkpoints" / name)) as checkpoints:
        restored = checkpoints.restore(state)
        if restored is not None:
            state = restored
        state = _train(run, index, name, objective, state, checkpoints, announce=restored is None)
    trained = fetch(state.best_params if stage.objective in SCORED else state.params)
    return [objective.export(population.member(trained, i, members), before) for i, before in enumerate(params)]


def _train(
    run: Run,
    index: int,
    name: str,
    objective: distill.Objective,
    state: TrainState,
    checkpoints: Checkpoints,
    announce: bool,
) -> TrainState:
    """The loop: from a state to that after the last step. A run over raw text announces its cost."""
    experiment, inputs, mesh, members = run.experiments[0], run.inputs, run.mesh, len(run.experiments)
    stage = experiment.stages[index]
    examples, teacher_params = inputs.examples(stage), run.teacher_params
    done, total = int(np.max(state.step)), stage_steps(stage, len(examples))
    if done < total and _reads_rows_again(experiment, stage, inputs, total):
        examples, teacher_params = _with_cached_targets(run, stage, objective, examples)
    hyper = population.stack([own.stages[index].hyper for own in run.experiments])
    # before its head is trained, a student cannot be scored: the Transformer stage keeps its last state, not its best
    scored = stage.objective in SCORED
    evaluate_every = stage.evaluate_every or data.steps_per_epoch(len(examples), stage.batch_size)
    schedule = optim.make_schedule(stage.schedule, total, stage.warmup_ratio)
    optimizer = _optimizer(experiment, stage)
    train_step = make_train_step(objective, optimizer, schedule, mesh, state, teacher_params, stage.accumulation_steps)
    keep_best, own_params = make_keep_best(mesh, state), make_own_params(mesh, state)
    if isinstance(experiment.source, CorpusSource) and announce:
        print(f"{name}: {_cost(run, stage, train_step, state, examples, teacher_params, hyper)}", flush=True)
    part = local_rows(mesh, stage.batch_size)
    batches = data.train_batches(examples, stage.batch_size, inputs.buckets, experiment.order_seed, done, total, part)
    with contextlib.closing(_Log(run, name, done, total)) as log, processes.stop_requests(mesh) as stop:
        running = None  # the step whose numbers are fetched once the next is dispatched: the device never waits
        for step, local in enumerate(batches, done + 1):
            batch = global_batch(mesh, local, stage.batch_size)
            state, numbers = train_step(state, teacher_params, batch, hyper)
            if running is not None:
                log.step(*running)
            running = step, batch.input_ids.size, numbers
            checkpoints.check()
            stopping = stop.agreed(last=step == total)
            score_now = scored and (step % evaluate_every == 0 or step == total)
            if score_now or stopping or step % experiment.checkpoint_every == 0 or step == total:
                log.step(*running)  # raises before a state that is not finite is saved
                running, selection = None, None
                if score_now:
                    scores = [run.score(own_params(state.params, i), inputs.dev["dev"]) for i in range(members)]
                    reached = log.scores(step, scores, inputs.selection)
                    state = keep_best(state, np.asarray(reached if members > 1 else reached[0], np.float32))
                    # a population's best states are in its newest: no step is the best of all members
                    selection = reached[0] if members == 1 else None
                checkpoints.save(step, state, selection)
                log.restart_clock()
            if stopping:
                break
        else:  # whoever asked while the last step was computed, scored and saved does not want the next stage
            stopping = index + 1 < len(experiment.stages) and stop.agreed(last=True)
        checkpoints.finish()
        if stopping:
            step = int(np.max(state.step))
            raise Stopped(f"stopped in stage {name} after step {step} of {total}; everything is saved in {run.out}")
    return state


def _optimizer(experiment: Experiment, stage: Stage) -> Any:
    return optim.make_optimizer("bert_adam" if experiment.preset == "official" else "adamw", stage.weight_decay)


def _initial_state(run: Run, index: int, objective: distill.Objective, params: list[Params]) -> TrainState:
    initial, keys = [], []
    for own, before in zip(run.experiments, params, strict=True):
        # an integer per stage and use; the order of the rows is the seed's alone, the same in every stage
        init_key, dropout_key = (jax.random.fold_in(jax.random.key(own.seed), 2 * index + i) for i in (1, 2))
        initial.append(objective.init(init_key, before))
        keys.append(dropout_key)
    stage = run.experiments[0].stages[index]
    optimizer, scored = _optimizer(run.experiments[0], stage), stage.objective in SCORED
    return create_state(population.stack(initial), optimizer, population.stack(keys), run.mesh, scored)


def _reads_rows_again(experiment: Experiment, stage: Stage, inputs: Inputs, total: int) -> bool:
    """Whether a stage of `total` steps would ask the teacher about a row again."""
    # a regression of the authors' code learns its predictions from the labels
    labels = stage.objective == "prediction" and experiment.preset == "official" and inputs.config.num_labels == 1
    return stage.distils and not labels and total > data.steps_per_epoch(len(inputs.train), stage.batch_size)


def _with_cached_targets(
    run: Run, stage: Stage, objective: distill.Objective, examples: Examples
) -> tuple[Examples, Params]:
    """The rows with the teacher's outputs, and no teacher; where they are too many to be kept, both as they are."""
    experiment, inputs = run.experiments[0], run.inputs
    layers = stage.objective == "transformer"
    identity = [inputs.fingerprints["teacher"], experiment.compute_dtype, stage.objective, experiment.preset]
    cache = teacher_cache.TeacherCache(
        objective,
        run.teacher_params,
        identity + ([experiment.layer_map] if layers else []),
        run.mesh,
        run.eval_batch_size,
        inputs.buckets,
        padding=experiment.preset != "default",
        compact=layers,
    )
    try:
        return cache.with_targets(examples, 1e9 * experiment.teacher_cache_gb), {}
    except teacher_cache.OverLimit as needed:
        if experiment.teacher_cache_gb and processes.is_primary():
            limit = f"--teacher-cache-gb {experiment.teacher_cache_gb:g}"
            print(f"{stage.objective}: the teacher's outputs {needed}, and {limit}: it runs in every step", flush=True)
        return examples, run.teacher_params


def _cost(
    run: Run,
    stage: Stage,
    train_step: Callable[..., Any],
    state: TrainState,
    examples: Examples,
    teacher_params: Params,
    hyper: Any,
) -> Cost:
    """Of the whole stage, if every sequence were of full length."""
    length, total = run.experiments[0].max_length, stage_steps(stage, len(examples))
    rows = np.arange(stage.batch_size, dtype=np.int64) % len(examples)
    batch = examples.batch(rows, length, 0)
    batch = place(batch, jax.tree.map(lambda _: batch_sharding(run.mesh), batch))
    seconds = seconds_per_step(train_step, state, teacher_params, batch, hyper)
    teacher = None if run.inputs.teacher is None else run.inputs.teacher.config
    flops = step_flops(
        stage.objective,
        run.inputs.config,
        teacher,
        rows=stage.batch_size,
        tokens=length,
        students=len(run.experiments),
        targets_known=batch.targets is not None,
    )
    return Cost(total, total * flops, seconds)


class _Log:
    """What a stage shows and writes: a progress bar, every member's numbers, and the speed."""

    def __init__(self, run: Run, name: str, done: int, total: int) -> None:
        members = run_dir.member_dirs(run.out, len(run.experiments)) if processes.is_primary() else []
        self._members = [run_dir.MetricsLog(directory, name, done) for directory in members]
        self._speed = run_dir.SpeedLog(run.out, name, done) if processes.is_primary() else None
        self._bar = progress(name, done, total)
        self._first = done + 1
        if done < total:
            self._bar.set_postfix_str("compiling")  # which its first estimates count

    def step(self, step: int, positions: int, numbers: dict[str, jax.Array]) -> None:
        """Fetch the numbers of a step whose batch has that many positions, show and log them.

        Raises:
            Diverged: the loss, the gradient or the updated parameters of a member are not finite.
        """
        fetched = {name: np.atleast_1d(value).tolist() for name, value in jax.device_get(numbers).items()}
        members = [dict(zip(fetched, values, strict=True)) for values in zip(*fetched.values(), strict=True)]
        for i, values in enumerate(members):
            watched = {name: values[name] for name in ("loss", "gradient_norm", "parameter_norm")}
            if not all(math.isfinite(value) for value in watched.values()):
                found = ", ".join(f"{name} is {value}" for name, value in watched.items())
                whose = "" if len(members) == 1 else f" of member {i}"
                raise Diverged(
                    f"step {step}{whose}: {found}; the checkpoints before it are sound. Start a new --out with a lower"
                    " learning rate"
                )
        self._bar.update()
        if self._speed is not None:
            self._speed.add(positions, members[0]["real_tokens"])
        log_now = step % LOG_EVERY == 0 or step == self._bar.total
        if log_now or step == self._first:
            self._bar.set_postfix(loss=_range(fetched["loss"]), refresh=False)
        if log_now:
            for log, values in zip(self._members, members, strict=False):  # no logs but the primary's
                log.write(step, values)
            if self._speed is not None:
                self._speed.write(step)

    def scores(self, step: int, scores: list[dict[str, float]], selection: str) -> list[float]:
        """Show and log the members' scores, and return those that select."""
        for log, own_scores in zip(self._members, scores, strict=False):  # no logs but the primary's
            log.write(step, {f"dev/{name}": value for name, value in own_scores.items()})
        reached = [own_scores[selection] for own_scores in scores]
        self._bar.set_postfix({selection: _range(reached)})
        return reached

    def restart_clock(self) -> None:
        """What was done since the last step was no training."""
        if self._speed is not None:
            self._speed.restart()

    def close(self) -> None:
        self._bar.close()
        for log in self._members:
            log.close()
        if self._speed is not None:
            self._speed.close()


def _range(values: Sequence[float]) -> str:
    """The value of a single run; of a population, the least and the largest where they differ."""
    low, high = f"{min(values):.4f}", f"{max(values):.4f}"
    return low if low == high else f"{low} to {high}"


def progress(name: str, done: int, total: int) -> Any:
    """A progress bar on stderr, of the primary process; where that is no terminal, a line now and then."""
    from tqdm import tqdm

    interval = 0.2 if sys.stderr.isatty() else 30
    return tqdm(
        initial=done,
        total=total,
        desc=name,
        unit="step",
        mininterval=interval,
        dynamic_ncols=True,
        disable=not processes.is_primary(),
    )
