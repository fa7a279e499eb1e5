"""A whole run: from checked input through its stages to a student directory."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tinybert_jax.devices import processes
from tinybert_jax.devices.sharding import choose_mesh, place, tree_shardings
from tinybert_jax.errors import InputError, note
from tinybert_jax.models.files.directory import save_hf
from tinybert_jax.models.files.tokenizer import keep_text_template
from tinybert_jax.models.heads import HEADS
from tinybert_jax.models.parameters import count_parameters, parameter_shapes
from tinybert_jax.settings.experiment import Experiment
from tinybert_jax.settings.sources import DataSource
from tinybert_jax.tasks.kinds import named_scores
from tinybert_jax.training import record
from tinybert_jax.training.chain import (
    Trained,
    Watch,
    check_compression,
    check_segment,
    compressed,
    finished,
    run_stages,
)
from tinybert_jax.training.diverged import DivergedMembers
from tinybert_jax.training.inputs import Inputs, initial_params, load_population, named_start
from tinybert_jax.training.loop import make_objective
from tinybert_jax.training.teaching import prepare


@dataclass(frozen=True)
class Result:
    """The result of a run: the model's directory, and the scores of model and teacher on the dev set.

    `scores` is empty after a Transformer stage alone, which trains no head. Without a teacher, `teacher_scores` is
    None. If a member of a population diverged, `diverged` says where; it has no scores, and no directory was written.
    """

    directory: Path
    scores: dict[str, float]
    teacher_scores: dict[str, float] | None
    diverged: str | None = None


def run(
    experiment: Experiment, out: str | Path, resume: bool = False, mesh: Mapping[str, int] | None = None
) -> Result:
    """Train an experiment's model through its stages, and write it to `out/student` as a Hugging Face directory.

    Args:
        experiment: what to train, on what, and how.
        out: the run's directory. It is created, and never overwritten.
        resume: continue the run in `out` from its newest sound checkpoint. The result is that of an unbroken run.
        mesh: sizes of the axes of the device mesh (`sharding.make_mesh`); default: the axis `data` alone, over as many
            devices as divide every batch evenly.

    In a multi-process run (`jax.distributed`), every process must call this with the same arguments.

    Raises:
        InputError: something that the experiment names is missing, damaged or does not fit; the teacher is at chance
            on a hundred dev rows or more; `out` exists, cannot be written, or, with `resume`, holds another run; or
            JAX_ENABLE_X64 is set.
        loop.Stopped: SIGINT, SIGTERM or SIGHUP came; the state is saved.
        diverged.Diverged: the loss, the gradient or the parameters became infinite or NaN.
    """
    return run_population((experiment,), out, resume, mesh)[0]


def run_population(
    experiments: Sequence[Experiment],
    out: str | Path,
    resume: bool = False,
    mesh: Mapping[str, int] | None = None,
    opening: str | None = None,
) -> list[Result]:
    """Train students of the same teacher together. The teacher's outputs are computed once for all.

    Args:
        experiments: one per member. They may differ in `model` (with the same shape), `start` and `seed`, and in the
            learning rate, temperature and loss weights of a stage; `data_seed` must be the same. On a CPU, each
            member's result is that of `run`, bit for bit; on accelerators or a mesh axis `member`, up to rounding.
        out: the run's directory. Member i is written to `out/memberI/student`; a single one to `out/student`.
        resume: as in `run`.
        mesh: as in `run`.
        opening: lines to print when everything is checked.

    Raises:
        InputError: as in `run`; or the experiments do not fit together.
        loop.Stopped: as in `run`.
        diverged.Diverged: all members diverged. A single member that diverges ends alone, and does not change the
            results of the others.
    """
    try:
        return _run(experiments, Path(os.path.expanduser(out)), resume, mesh, opening)
    except OSError as error:
        message = f"{error.filename or out}: {error.strerror or error}"
        if record.is_begun(out):
            message += (
                f"; the checkpoints in {out} are sound: make room or mend the directory, then continue with --resume"
            )
        raise InputError(message) from error


def _run(
    experiments: Sequence[Experiment], out: Path, resume: bool, axes: Mapping[str, int] | None, opening: str | None
) -> list[Result]:
    if jnp.result_type(float) != jnp.float32:
        raise InputError("JAX_ENABLE_X64 is set, and training is in float32: unset it")
    with processes.primary_first():
        record.check_out(out, resume)
        members = load_population(experiments)
    experiments, starts = _with_named_starts(experiments, members)
    experiment, inputs = experiments[0], members[0]  # for all that the members share
    # building every member's objectives raises errors before anything is computed
    for member in experiments:
        for index in range(len(member.stages)):
            make_objective(member, index, inputs)
    mesh = _mesh(experiment, inputs, axes, len(members))
    record.check_processes(experiments, members, mesh)
    check_compression(experiment, inputs, len(members))
    if resume:
        record.check_same(out, experiments, members, mesh)
    if processes.is_primary():
        _print_notes(experiment, inputs, mesh, chosen=axes is None)
    taught = prepare(experiment, inputs, mesh)
    if processes.is_primary():  # what was chosen, as nothing was refused
        rows = ", ".join(f"{len(part.tokens):,} in {name}" for name, part in inputs.dev.items())
        counts = f"rows: {len(inputs.train):,} in training, {rows}" if rows else None
        for line in filter(None, (opening, counts, *starts)):
            print(line, flush=True)
    models = initial_params(experiments, members)
    diverged = DivergedMembers(experiments, out)
    watch = Watch(experiment, inputs, diverged, mesh)
    watch("whole", inputs, models)
    inputs, models = compressed(experiment, 0, inputs, models, watch)
    check_segment(experiment, 0, inputs, models)
    if processes.is_primary():
        if not resume:
            record.create(out, experiments, members, mesh)
        for directory in record.member_dirs(out, len(experiments)):
            directory.mkdir(exist_ok=True)  # a run that was killed early may lack them
    processes.barrier("run directory")
    trained = run_stages(experiments, inputs, models, watch, taught, mesh, out, diverged)
    results, last = [], f"{len(experiment.stages)}-{experiment.stages[-1].objective.name}"
    for number, directory in enumerate(record.member_dirs(out, len(experiments))):
        result = Result(directory / "student", {}, taught.scores)
        if number not in diverged:
            with diverged.ended_by(number, last):
                result = _finish(experiments[number], trained, number, mesh, directory / "student", taught.scores)
        results.append(dataclasses.replace(result, diverged=diverged.reason(number)))
        if number not in diverged and processes.is_primary():
            diverged.forget(number)
    processes.barrier("student")
    return results


def _mesh(experiment: Experiment, inputs: Inputs, axes: Mapping[str, int] | None, members: int) -> Mesh:
    """The mesh with these axes, or the default mesh.

    Raises:
        InputError: as `choose_mesh`.
    """
    configs = {"model": inputs.config}
    if inputs.teacher_model is not None:
        configs["teacher"] = inputs.teacher_model.config
    heads = {role: config.num_attention_heads for role, config in configs.items()}
    return choose_mesh(axes, _rows_at_once(experiment), heads, members)


def _rows_at_once(experiment: Experiment) -> list[int]:
    """The number of rows that each stage computes at once: a batch, or with accumulation a part of it."""
    return [stage.batch_size // stage.accumulation_steps for stage in experiment.stages]


def _print_notes(experiment: Experiment, inputs: Inputs, mesh: Mesh, chosen: bool) -> None:
    """Print notes about devices that the default mesh leaves idle, and about settings that may be mistakes."""
    if chosen and mesh.size < jax.device_count():
        rows = " and ".join(map(str, sorted(set(_rows_at_once(experiment)))))
        note(
            f"{mesh.size} of {jax.device_count()} devices take part: more do not share {rows} rows (a batch, or with"
            " accumulation its part) evenly"
        )
    student, teacher = inputs.config, inputs.teacher_model
    if teacher is not None and student.num_hidden_layers > teacher.config.num_hidden_layers:
        note(f"the student has {student.num_hidden_layers} layers, and the teacher {teacher.config.num_hidden_layers}")
    if teacher is not None:
        models = (HEADS[inputs.head].model(config) for config in (student, teacher.config))
        size, teacher_size = (count_parameters(parameter_shapes(model)) for model in models)
        if size > teacher_size:
            note(
                f"the student is larger than the teacher: it has {size:,} parameters, and the teacher {teacher_size:,}"
            )
    if inputs.known_dev_rows:
        dev_rows = sum(len(split.tokens) for split in inputs.dev.values())
        note(
            f"{inputs.known_dev_rows} of {dev_rows} dev rows have the text of a training row, so that scores are"
            " better than on new texts"
        )
    largest, rows_there = max(stage.batch_size for stage in experiment.stages), len(inputs.train)
    if largest > rows_there:
        note(f"a batch of {largest} rows is larger than the {rows_there} training rows, and filled up")


def _finish(
    experiment: Experiment,
    trained: Trained,
    number: int,
    mesh: Mesh,
    student: Path,
    teacher_scores: dict[str, float] | None,
) -> Result:
    """Score a member's trained model on the dev sets, and write its directory."""
    inputs, params, outputs = trained.inputs, trained.models[number], trained.outputs
    scores, failure = {}, ""
    if experiment.trains_head:
        placed = place(params, tree_shardings(mesh, params))
        logits = {name: outputs(placed, split) for name, split in inputs.dev.items()}
        scores = named_scores({name: split.score(logits[name]) for name, split in inputs.dev.items()})
        failure = inputs.dev["dev"].failure(logits["dev"])
    if processes.is_primary():
        if failure:
            advice = "try more epochs or steps, or a higher learning rate"
            if inputs.loaded is None and experiment.start == "random":
                advice += ", or --start spectral where the student has its teacher's heads"
            print(f"warning: {student}: on the dev set {failure}; {advice}", file=sys.stderr)
        config, params = finished(experiment, len(experiment.stages) - 1, inputs.config, params)
        inputs = dataclasses.replace(inputs, config=config)
        # so that `predict` joins columns, and `transformers` truncates texts, as in training
        inputs.tokenizer.model_max_length = experiment.max_length
        if isinstance(experiment.source, DataSource):
            keep_text_template(inputs.tokenizer, experiment.source.text_template)
        save_hf(student, inputs.config, params, inputs.tokenizer)
        record.write_model_card(student, experiment, inputs, params, scores, teacher_scores, trained.chains[number])
    return Result(student, scores, teacher_scores)


def _with_named_starts(
    experiments: Sequence[Experiment], members: Sequence[Inputs]
) -> tuple[list[Experiment], list[str]]:
    """The experiments with "auto" replaced by the start that it means, and for each of these a line that says why."""
    starts = [named_start(experiment, inputs) for experiment, inputs in zip(experiments, members, strict=True)]
    lines = [f"start: {name} ({reason})" for name, reason in dict.fromkeys(starts) if reason]
    named = zip(experiments, starts, strict=True)
    return [dataclasses.replace(experiment, start=name) for experiment, (name, _) in named], lines
