"""The one host loop that every stage runs through, and a whole run: from checked input to a student directory."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from tinybert_jax import answers, data, distill, hf, optim, population, processes, run_dir
from tinybert_jax.checkpoint import Checkpoints
from tinybert_jax.config import BertConfig, CorpusSource, Experiment, InputError, Params, Stage
from tinybert_jax.cost import Cost, seconds_per_step, step_flops
from tinybert_jax.heads import HEADS
from tinybert_jax.inputs import Inputs, initial_params, load_population
from tinybert_jax.predict import predict_logits
from tinybert_jax.sharding import (
    batch_sharding,
    choose_mesh,
    fetch,
    global_batch,
    local_rows,
    place,
    tree_shardings,
)
from tinybert_jax.splits import Split
from tinybert_jax.train_step import (
    TrainState,
    create_state,
    make_keep_best,
    make_own_params,
    make_predict_step,
    make_train_step,
)

LOG_EVERY = 10  # steps
EVAL_BATCH_SIZE = 64
SCORED = ("supervised", "prediction")  # the objectives that train the task's head


class Stopped(Exception):
    """The run was asked to stop; its state is saved and can be resumed."""


class Diverged(Exception):
    """The loss, the gradient or the parameters are not finite; the checkpoints are sound."""


class PlacedTeacher(NamedTuple):
    """A teacher's parameters on the mesh, and its compiled `make_predict_step`; no parameters where there is none."""

    params: Params
    step: Any


@dataclass(frozen=True)
class Result:
    """What a run gave: the model's directory, and its and its teacher's scores on the dev set.

    `scores` is empty after a Transformer stage alone, which trains no head; `teacher_scores`, without a teacher, None.
    """

    directory: Path
    scores: dict[str, float]
    teacher_scores: dict[str, float] | None


def run(
    experiment: Experiment, out: str | Path, resume: bool = False, mesh: Mapping[str, int] | None = None
) -> Result:
    """Train an experiment's model through its stages, and write it to `out/student` as a Hugging Face directory.

    Args:
        experiment: what to train, on what, and how.
        out: the run's directory; made, never overwritten.
        resume: continue the run in `out` from its newest sound checkpoint. The result is that of an unbroken run.
        mesh: the sizes of the axes `data`, `fsdp` and `model` of the device mesh; default: all devices along `data`,
            as far as they share the batches evenly.

    Of several processes (`jax.distributed`), all call it alike.

    Raises:
        InputError: something the experiment names is missing, damaged or does not fit; the teacher is at chance; `out`
            exists, cannot be written, or, with `resume`, holds another run.
        Stopped: SIGINT or SIGTERM came; the state is saved.
        Diverged: the loss, the gradient or the parameters became infinite or NaN.
    """
    return run_population((experiment,), out, resume, mesh)[0]


def run_population(
    experiments: Sequence[Experiment], out: str | Path, resume: bool = False, mesh: Mapping[str, int] | None = None
) -> list[Result]:
    """Train students together, each behind the same teacher: its answers are computed once for all of them.

    Args:
        experiments: one per member. They may differ in `model` (of one shape), `start` and `seed`, and in learning
            rate, temperature and loss weights of a stage; `data_seed` must be the same. On CPU each member's result is
            that of `run`, bit for bit; on accelerators, but for rounding.
        out: the run's directory; member i is written to `out/memberI/student` (of a single one, to `out/student`).
        resume: as in `run`.
        mesh: as in `run`.

    Raises:
        InputError: as in `run`; or the experiments do not go together.
        Stopped: as in `run`.
        Diverged: as in `run`, by any of the members.
    """
    try:
        return _run(experiments, Path(out), resume, mesh)
    except OSError as error:
        raise InputError(
            f"{error.filename or out}: {error.strerror or error}; the checkpoints in {out} are sound: make room or"
            " mend the directory, then continue with --resume"
        ) from error


def _run(experiments: Sequence[Experiment], out: Path, resume: bool, axes: Mapping[str, int] | None) -> list[Result]:
    with processes.primary_first("inputs"):
        run_dir.check_out(out, resume)
        members = load_population(experiments)
    experiment, inputs = experiments[0], members[0]  # for all that they share
    for stage in experiment.stages:
        make_objective(experiment, stage, inputs)  # refuses what does not fit, before anything is computed
    configs = {"model": inputs.config} | ({"teacher": inputs.teacher.config} if inputs.teacher else {})
    mesh = choose_mesh(axes, [stage.batch_size // stage.accumulation_steps for stage in experiment.stages], configs)
    if resume:
        run_dir.check_same(out, experiments, members, mesh)
    teacher, teacher_scores = PlacedTeacher({}, None), None
    if inputs.teacher is not None and any(stage.objective != "supervised" for stage in experiment.stages):
        placed = place(inputs.teacher.params, tree_shardings(mesh, inputs.teacher.params))
        teacher = PlacedTeacher(placed, make_predict_step(HEADS[inputs.head](inputs.teacher.config), mesh, placed))
        if inputs.teacher_dev:
            teacher_scores = _score_teacher(experiment, inputs, inputs.teacher.config, teacher, mesh)
    if not resume and processes.is_primary():
        run_dir.create(out, experiments, members, mesh)
    processes.barrier("run directory")
    params = [initial_params(*member) for member in zip(experiments, members, strict=True)]
    bare = {name: value for name, value in params[0].items() if name not in distill.PROJECTIONS}
    predict_step = make_predict_step(HEADS[inputs.head](inputs.config), mesh, bare)  # compiled once

    def score(params: Params, split: Split) -> dict[str, float]:
        logits = predict_logits(predict_step, params, split.tokens, _eval_batch_size(mesh), inputs.buckets)
        if not np.isfinite(logits).all():
            raise Diverged("the model's outputs are not finite")
        return split.score(logits)

    for index in range(len(experiment.stages)):
        params = _train_stage(experiments, index, inputs, params, teacher, score, mesh, out)
    trained_head = any(stage.objective in SCORED for stage in experiment.stages)
    results = []
    for i, directory in enumerate(run_dir.member_dirs(out, len(experiments))):
        scores = {}
        if trained_head or members[i].keep_head:
            placed = place(params[i], tree_shardings(mesh, params[i]))
            scores = _named({name: score(placed, split) for name, split in inputs.dev.items()})
        student = directory / "student"
        if processes.is_primary():
            # where training cut the texts, `predict` and `transformers` cut them
            inputs.tokenizer.model_max_length = experiment.max_length
            hf.save_hf(student, inputs.config, params[i], inputs.tokenizer)
            run_dir.write_model_card(student, experiments[i], inputs, params[i], scores, teacher_scores)
        results.append(Result(student, scores, teacher_scores))
    processes.barrier("student")
    return results


def stage_steps(stage: Stage, rows: int) -> int:
    """The number of steps of a stage over that many training rows."""
    steps = stage.epochs * data.steps_per_epoch(rows, stage.batch_size)
    return steps if stage.max_steps is None else min(steps, stage.max_steps)


def make_objective(experiment: Experiment, stage: Stage, inputs: Inputs) -> distill.Objective:
    """The objective of a stage.

    Raises:
        InputError: teacher and student do not fit each other.
    """
    if stage.objective == "supervised":
        return distill.supervised_objective(inputs.config, inputs.head)
    if stage.objective == "masked_lm":
        return distill.masked_lm_objective(inputs.config)
    assert inputs.teacher is not None, "Experiment asks for a teacher where a stage distils"
    teacher = inputs.teacher.config
    if stage.objective == "transformer":
        return distill.transformer_objective(inputs.config, teacher, experiment.layer_map, experiment.preset)
    return distill.prediction_objective(inputs.config, teacher, experiment.preset, inputs.head)


def _score_teacher(
    experiment: Experiment, inputs: Inputs, config: BertConfig, teacher: PlacedTeacher, mesh: Mesh
) -> dict[str, float]:
    """The teacher's dev scores. Below what independent guesses reach in 1 of 40 cases, the teacher knows nothing."""
    scores = {}
    for name, dev in inputs.teacher_dev.items():
        logits = predict_logits(teacher.step, teacher.params, dev.tokens, _eval_batch_size(mesh), inputs.buckets)
        skill, chance = dev.skill(logits), min(0.5, 2 / math.sqrt(len(dev.tokens)))
        if skill < chance:
            raise InputError(
                f"{experiment.teacher}: its predictions on the dev set are no better than chance (correlation with the"
                f" labels, or F1, {skill:.3f}, under {chance:.3f}); fine-tune it on this task first, or check its"
                f" label order {config.id2label}"
            )
        scores[name] = dev.score(logits)
    return _named(scores)


def _eval_batch_size(mesh: Mesh) -> int:
    """EVAL_BATCH_SIZE, or as little more as the devices can share."""
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    return -(-EVAL_BATCH_SIZE // rows) * rows


def _named(scores: dict[str, dict[str, float]]) -> dict[str, float]:
    """The scores of all dev sets; those of a second one have its name behind them: `accuracy_mismatched`."""
    suffixes = {name: "" if name == "dev" else f"_{name}" for name in scores}
    return {f"{metric}{suffixes[name]}": value for name, own in scores.items() for metric, value in own.items()}


def _train_stage(
    experiments: Sequence[Experiment],
    index: int,
    inputs: Inputs,
    params: list[Params],
    teacher: PlacedTeacher,
    score: Callable[[Params, Split], dict[str, float]],
    mesh: Mesh,
    out: Path,
) -> list[Params]:
    """Run one stage, or what is left of it, and return the members' parameters after it."""
    experiment, members = experiments[0], len(experiments)
    stage = experiment.stages[index]
    name = f"{index + 1}-{stage.objective}"
    objective = make_objective(experiment, stage, inputs)
    optimizer = optim.make_optimizer("bert_adam" if experiment.preset == "official" else "adamw", stage.weight_decay)
    examples, teacher_params = inputs.examples(stage), teacher.params
    total = stage_steps(stage, len(examples))
    if _answers_repeat(experiment, stage, inputs, total):
        computed = f"{inputs.fingerprints['teacher']} {experiment.compute_dtype}"
        sizes = _eval_batch_size(mesh), inputs.buckets
        examples = answers.answered(examples, teacher.step, teacher_params, computed, mesh, *sizes)
        teacher_params = {}  # the step reads no more of it than its answers
    schedule = optim.make_schedule(stage.schedule, total, stage.warmup_ratio)
    initial, keys = [], []
    for own, before in zip(experiments, params, strict=True):
        # an integer per stage and use; the order of the rows is the seed's alone, the same in every stage
        init_key, dropout_key = (jax.random.fold_in(jax.random.key(own.seed), 2 * index + i) for i in (1, 2))
        initial.append(objective.init(init_key, before))
        keys.append(dropout_key)
    hyper = population.stack([own.stages[index].hyper for own in experiments])
    state = create_state(population.stack(initial), optimizer, population.stack(keys), mesh)
    checkpoints = Checkpoints(out / "checkpoints" / name)
    restored = checkpoints.restore(state)
    state = state if restored is None else restored
    done = int(np.max(state.step))
    directories = run_dir.member_dirs(out, members) if processes.is_primary() else []
    logs = [run_dir.MetricsLog(directory, name, done) for directory in directories]
    # before its head is trained, a student cannot be scored: the Transformer stage keeps its last state, not its best
    scored = stage.objective in SCORED
    evaluate_every = stage.evaluate_every or data.steps_per_epoch(len(examples), stage.batch_size)
    train_step = make_train_step(objective, optimizer, schedule, mesh, state, teacher_params, stage.accumulation_steps)
    keep_best = make_keep_best(mesh, state)
    own_params = make_own_params(mesh, state)
    if isinstance(experiment.source, CorpusSource) and restored is None:
        cost = _cost(experiment, stage, inputs, train_step, state, teacher_params, total, mesh, hyper)
        print(f"{name}: {cost}", flush=True)
    batches = data.train_batches(
        examples,
        stage.batch_size,
        inputs.buckets,
        experiment.order_seed,
        done,
        total,
        local_rows(mesh, stage.batch_size),
    )
    try:
        with processes.stop_requests(mesh) as stop, progress(name, done, total) as bar:
            running = None  # the step whose numbers are fetched once the next is dispatched: the device never waits
            for step, local in enumerate(batches, done + 1):
                batch = global_batch(mesh, local, stage.batch_size)
                state, numbers = train_step(state, teacher_params, batch, hyper)
                if running is not None:
                    _log_step(logs, bar, *running)
                running = step, numbers
                checkpoints.check()
                stopping = stop.agreed(last=step == total)
                score_now = scored and (step % evaluate_every == 0 or step == total)
                if score_now or stopping or step % experiment.checkpoint_every == 0 or step == total:
                    _log_step(logs, bar, *running)  # raises before a state that is not finite is saved
                    running, selection = None, None
                    if score_now:
                        scores = [score(own_params(state.params, i), inputs.dev["dev"]) for i in range(members)]
                        for log, own_scores in zip(logs, scores, strict=False):  # no logs but the primary's
                            log.write(step, {f"dev/{name}": value for name, value in own_scores.items()})
                        reached = [own_scores[inputs.selection] for own_scores in scores]
                        bar.set_postfix({inputs.selection: _range(reached)})
                        state = keep_best(state, np.asarray(reached if members > 1 else reached[0], np.float32))
                        # a population's best states are in its newest: no step is the best of all members
                        selection = reached[0] if members == 1 else None
                    checkpoints.save(step, state, selection)
                if stopping:
                    checkpoints.finish()
                    raise Stopped(
                        f"stopped in stage {name} after step {step} of {total}; everything is saved in {out}"
                    )
        checkpoints.finish()
    finally:
        for log in logs:
            log.close()
        checkpoints.close()
    trained = fetch(state.best_params if scored else state.params)
    return [objective.export(population.member(trained, i, members), before) for i, before in enumerate(params)]


def _answers_repeat(experiment: Experiment, stage: Stage, inputs: Inputs, total: int) -> bool:
    """Whether a stage of `total` steps would ask the teacher for the logits of a row again."""
    gold = experiment.preset == "official" and inputs.config.num_labels == 1  # which learns from the labels
    again = total > data.steps_per_epoch(len(inputs.train), stage.batch_size)
    return stage.objective == "prediction" and inputs.head == "sequence" and again and not gold


def _cost(
    experiment: Experiment,
    stage: Stage,
    inputs: Inputs,
    train_step: Callable[..., Any],
    state: TrainState,
    teacher_params: Params,
    total: int,
    mesh: Mesh,
    hyper: Any,
) -> Cost:
    """Of the whole stage, if every sequence were of full length."""
    rows = np.arange(stage.batch_size, dtype=np.int64) % len(inputs.train)
    batch = inputs.examples(stage).batch(rows, experiment.max_length, 0)
    batch = place(batch, jax.tree.map(lambda _: batch_sharding(mesh), batch))
    seconds = seconds_per_step(train_step, state, teacher_params, batch, hyper)
    teacher = None if inputs.teacher is None else inputs.teacher.config
    sizes = stage.batch_size, experiment.max_length, max(1, state.step.size)
    return Cost(total, total * step_flops(stage.objective, inputs.config, teacher, *sizes), seconds)


def _range(values: Sequence[float]) -> str:
    """The value of a single run; of a population, the least and the largest."""
    low, high = min(values), max(values)
    return f"{low:.4f}" if len(values) == 1 else f"{low:.4f} to {high:.4f}"


def _log_step(logs: Sequence[run_dir.MetricsLog], bar: Any, step: int, numbers: dict[str, jax.Array]) -> None:
    """Fetch a step's numbers, show and log them.

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
    bar.update()
    if step % LOG_EVERY == 0 or step == bar.total:
        bar.set_postfix(loss=_range(fetched["loss"]), refresh=False)
        for log, values in zip(logs, members, strict=False):  # no logs but the primary's
            log.write(step, values)


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
