"""The report of finished runs: one HTML page and the same as Markdown."""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from tinybert_jax.errors import InputError
from tinybert_jax.inference.exported import ONNX_INT8
from tinybert_jax.models.files.directory import load_config
from tinybert_jax.models.files.tokenizer import load_tokenizer, trained_length
from tinybert_jax.reports import quality, recipe
from tinybert_jax.reports.agreement import Agreement, agreement
from tinybert_jax.reports.document import Block, Items, Report, Section, Text
from tinybert_jax.reports.html_page import write_html
from tinybert_jax.reports.markdown_page import write_markdown
from tinybert_jax.reports.models import (
    BASELINE,
    COMPRESSED,
    EXPORTED,
    OTHER,
    STUDENT,
    TEACHER,
    Model,
    fill_scores,
    run_model,
    same_place,
    time_models,
    weigh_alone,
)
from tinybert_jax.reports.runs import (
    Named,
    Run,
    chain_of,
    compressed,
    kind_of,
    read_all,
    short_names,
    source_of,
)
from tinybert_jax.settings.experiment import Experiment
from tinybert_jax.settings.objectives import Prediction
from tinybert_jax.settings.sources import CORPUS, DataSource
from tinybert_jax.settings.stages import Stage
from tinybert_jax.settings.tasks import Task, get_task
from tinybert_jax.tasks.kinds import load_split
from tinybert_jax.teachers.predictions import is_predictions, load_predictions
from tinybert_jax.teachers.teacher import UnknownRow
from tinybert_jax.training import diverged
from tinybert_jax.training.record import is_begun

HTML, MARKDOWN = "report.html", "report.md"


def write_report(names: Sequence[str], out: Path | None = None, measure: bool = True) -> list[Path]:
    """Write `report.html` and `report.md`. Older ones are replaced.

    Args:
        names: directories of runs, and also of models and exported models, which are scored on the same rows.
        out: the directory for the two files; default: the first run's.
        measure: also time the models.

    Returns:
        The two files.

    Raises:
        InputError: no run is named, a run cannot be read, the runs are of different tasks, or the rows cannot be read.
    """
    runs, others = read_all(names)
    if out is None:  # in a population, the run's directory, not a member's
        out = next((Path(name) for name in names if is_begun(name)), runs[0].directory)
    return _write(make_report(runs, others, measure), out)


def write_compressed(
    out: Path, model: str, task: str, source: DataSource, max_length: int | None = None, measure: bool = True
) -> list[Path]:
    """Write the report of a model that `tinybert compress` made, beside the model. Arguments as in the command.

    Raises:
        InputError: as `write_report`.
    """
    length = max_length or trained_length(load_tokenizer(out, load_config(out)), load_config(out))
    return _write(make_report([compressed(out, model, task, source, length)], [], measure), out)


def _write(report: Report, out: Path) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    files = []
    with tempfile.TemporaryDirectory(dir=out) as folder:
        for name, text in ((HTML, write_html(report)), (MARKDOWN, write_markdown(report))):
            written = Path(folder) / name
            written.write_text(text, "utf-8", "backslashreplace")
            os.replace(written, out / name)
            files.append(out / name)
    return files


def make_report(runs: Sequence[Run], others: Sequence[Named], measure: bool) -> Report:
    """The whole report, before it is written."""
    task_name, models = runs[0].settings["task"], _models(runs, others)
    populations = [run.population for run in runs if run.population]
    named = [*(run.name for run in runs), *(model.name for model in models), *populations]
    short = short_names(list(dict.fromkeys(named)))
    short[""] = ""
    runs = [dataclasses.replace(run, name=short[run.name], population=short[run.population]) for run in runs]
    for model in models:
        model.name, model.population = short[model.name], short[model.population]
    notes = _unfinished(runs)
    finished = [run for run in runs if run.is_finished]
    if task_name == CORPUS:
        for model in models:
            weigh_alone(model, float(runs[0].settings["max_length"]))
        notes.append("The runs are on raw text, whose models are scored on no task.")
        return _report("raw text", runs, (), notes, [quality.quality(models, "")] if models else [], models)
    task = get_task(task_name)
    source, lengths = source_of(runs[0]), sorted({int(run.settings["max_length"]) for run in runs})
    length = lengths[-1]
    if len(lengths) > 1:
        unlike = " and ".join(map(str, lengths))
        notes.append(f"The runs have rows of {unlike} tokens. All models are scored with {length}.")
    notes += [*_other_rows(runs), *_teacher_notes(runs)]
    for model in models:
        show(f"report: {model.name}")
        if is_predictions(model.path):
            _run_predictions(model, task, source, length, finished)
        else:
            run_model(model, task, source, length)
    for run in finished:
        if int(run.settings["max_length"]) == length:  # else rows are truncated at another length
            notes += _changed_rows(run, models)
    if measure:
        time_models([model for model in models if model.timings])
    metric = _metric(task, models)
    teachers = _teachers(runs, models)
    sections: list[Section | None] = [
        quality.quality(models, metric),
        quality.classes(models),
        quality.calibration(models),
        quality.lost_and_won(models, teachers),
        recipe.layers(_compared(finished, teachers, task, source)),
    ]
    return _report(task.name, runs, quality.summary(models, metric, teachers), notes, sections, models)


def show(line: str) -> None:
    """Print a line about the progress."""
    print(line, file=sys.stderr, flush=True)


def _report(
    task: str,
    runs: Sequence[Run],
    lead: tuple[Block, ...],
    notes: Sequence[str],
    sections: Sequence[Section | None],
    models: Sequence[Model],
) -> Report:
    title = f"Report of {', '.join(dict.fromkeys(run.population or run.name for run in runs))} ({task})"
    places = {model.name: Path(model.path) for model in models} | {run.name: run.student for run in runs}
    chains = {name: chain for name, path in places.items() if (chain := chain_of(path)) is not None}
    last = [
        recipe.training(runs),
        recipe.compression(chains),
        recipe.settings(runs, [(model.name, model.role, model.path) for model in models]),
    ]
    lead = (*lead, *([Items(tuple(f"Note: {note}" for note in notes))] if notes else []))
    origin = f"Written by tinybert_jax on {date.today().isoformat()}."
    kept = tuple(part for part in (*sections, *last) if part is not None)
    return Report(title, lead or (Text(""),), kept, origin)


def _unfinished(runs: Sequence[Run]) -> list[str]:
    lines = []
    for run in runs:
        if (run.directory / diverged.FILE).is_file():
            reason = (run.directory / diverged.FILE).read_text("utf-8").splitlines()[0]
            lines.append(f"{run.name} has no model: {reason}")
        elif not run.is_finished:
            lines.append(f"{run.name} is not finished: it has no model yet, so its training alone is shown.")
    return lines


def _other_rows(runs: Sequence[Run]) -> list[str]:
    first = runs[0].settings["source"]
    return [
        f"{run.name} was trained on other files than {runs[0].name}; all are scored on the dev rows of the latter."
        for run in runs[1:]
        if run.settings["source"] != first
    ]


def _teacher_notes(runs: Sequence[Run]) -> list[str]:
    """Notes about teachers that cannot be shown fully, because they are not a single model or file."""
    notes = []
    for run in runs:
        teacher = run.settings.get("teacher")
        if isinstance(teacher, dict):
            if _teacher_names(run):
                mean = "the mean of several, each of which is shown; it is held against the first of them"
                notes.append(f"The teacher of {run.name} was {mean}.")
            else:
                notes.append(f"The teacher of {run.name} was a function, which no run keeps: it is not shown.")
    return notes


def _changed_rows(run: Run, models: Sequence[Model]) -> list[str]:
    """A note if the dev rows have changed since the run."""
    prints = run.facts.get("fingerprints")
    before = prints.get("dev") if isinstance(prints, dict) else None
    now = next((model.fingerprint for model in models if model.path == str(run.student)), "")
    if not before or not now or before == now:
        return []
    return [f"The dev rows, or how {run.name} cuts them into pieces, are no longer those that it was trained beside."]


def _teacher_names(run: Run) -> list[str]:
    """The names of a run's teachers: the members of an ensemble; none for a function, which cannot be run."""
    teacher = run.settings.get("teacher")
    if isinstance(teacher, dict):
        members = teacher.get("members", [])
        return [member for member in members if isinstance(member, str)]
    return [teacher] if isinstance(teacher, str) else []


def _models(runs: Sequence[Run], others: Sequence[Named]) -> list[Model]:
    """All models of the report, each once: teachers, the runs' models, other models."""
    models: list[Model] = []

    def add(name: str, path: str, role: str) -> None:
        if not any(same_place(model.path, path) for model in models):
            population = next((run.population for run in runs if same_place(str(run.student), path)), "")
            models.append(Model(name, path, role, population=population))

    for run in runs:
        for teacher in _teacher_names(run):
            add(_run_name(teacher, runs), teacher, TEACHER)
            if (int8 := Path(teacher) / ONNX_INT8).is_file():
                add(f"{_run_name(teacher, runs)}, {kind_of(ONNX_INT8)}", str(int8), EXPORTED)
    for run in runs:
        if run.is_finished:
            role = COMPRESSED if not run.settings["stages"] else BASELINE if run.on_labels_alone else STUDENT
            add(run.name, str(run.student), role)
    for other in others:
        add(other.name, other.path, EXPORTED if other.is_exported else OTHER)
    return models


def _run_name(path: str, runs: Sequence[Run]) -> str:
    """The name of the run that made a model, if there is one."""
    return next((run.name for run in runs if same_place(str(run.student), path)), path)


def _run_predictions(model: Model, task: Task, source: DataSource, length: int, runs: Sequence[Run]) -> None:
    """Score a file of predictions, on the rows of a run, tokenised as in this run."""
    experiment = Experiment(
        task=task.name, source=source, model=model.path, stages=(Stage(Prediction()),), teacher=model.path
    )
    try:
        teacher = load_predictions(experiment)
        if not runs:
            raise InputError("no run is finished, whose tokenizer reads the rows")
        tokenizer = load_tokenizer(runs[0].student, load_config(runs[0].student))
        split = load_split(task, source, "dev", tokenizer, length, teacher.label_names or None)
        assert teacher.outputs_of is not None, "a file of predictions knows rows"
        assert split.rows is not None, "a file teaches texts alone"
        outputs = teacher.outputs_of(split.rows)
        fill_scores(model, task, task, split, outputs if outputs.ndim > 1 else outputs[:, None])
    except UnknownRow:
        model.note = "it has no predictions of the dev rows"
    except InputError as error:
        model.note = str(error)


def _metric(task: Task, models: Sequence[Model]) -> str:
    """The score that is drawn and shown first."""
    scored: dict[str, Any] = next((model.scores for model in models if model.scores), {})
    return task.metrics[0] if task.metrics[0] in scored else next(iter(scored), task.metrics[0])


def _teachers(runs: Sequence[Run], models: Sequence[Model]) -> dict[str, Model]:
    """The teacher with which each model is compared, by the model's path: its teacher, or else the first one."""
    first = next((model for model in models if model.role == TEACHER and model.scores), None)
    result = {}
    for model in models:
        run = next((run for run in runs if str(run.student) == model.path), None)
        names = [] if run is None else _teacher_names(run)
        teacher = next((m for name in names for m in models if same_place(m.path, name) and m.scores), first)
        if teacher is not None and model.role != TEACHER:
            result[model.path] = teacher
    return result


def _compared(
    runs: Sequence[Run], teachers: dict[str, Model], task: Task, source: DataSource
) -> list[tuple[str, str, Agreement | str]]:
    compared: list[tuple[str, str, Agreement | str]] = []
    for run in runs:
        teacher = teachers.get(str(run.student))
        if teacher is None:
            continue
        mapping = run.settings.get("layer_map", "uniform")
        show(f"report: layers of {run.name}")
        try:
            if is_predictions(teacher.path):
                raise InputError(f"{teacher.name} is a file of predictions, which has no layers")
            layer_map = tuple(mapping) if isinstance(mapping, list) else mapping
            length = int(run.settings["max_length"])
            result: Agreement | str = agreement(str(run.student), teacher.path, task, source, length, layer_map)
        except InputError as error:
            result = str(error)
        compared.append((run.name, teacher.name, result))
    return compared
