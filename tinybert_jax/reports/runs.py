"""Read the directories of finished runs for a report."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinybert_jax.errors import InputError
from tinybert_jax.inference.exported import exported_file, exported_files, is_int8
from tinybert_jax.reports.tables import Table
from tinybert_jax.settings.objectives import WORDS
from tinybert_jax.settings.sources import DataSource
from tinybert_jax.training.record import is_begun, member_dirs

RECORD = "experiment.json"


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """The run of one model; in a population, of one member."""

    name: str  # as given, with the member's number
    directory: Path  # holds the model and its log
    settings: dict[str, Any]  # the experiment
    facts: dict[str, Any]  # the rest of the record: versions, devices, fingerprints
    metrics: list[dict[str, Any]]
    speed: list[dict[str, Any]]  # of the whole population

    student: Path
    population: str = ""  # the name of the run of which this is a member; "" for a run of one model

    @property
    def is_finished(self) -> bool:
        return (self.student / "config.json").is_file()

    @property
    def on_labels_alone(self) -> bool:
        """Whether no stage learnt from a teacher."""
        names = [stage["objective"]["name"] for stage in self.settings["stages"]]
        kinds = [WORDS.get(name) for name in names]
        return bool(kinds) and all(kind is not None and kind.on_tasks and not kind.distils for kind in kinds)


@dataclasses.dataclass(frozen=True)
class Named:
    """A model in the report that no run made."""

    name: str
    path: str
    is_exported: bool = False


def kind_of(file: str) -> str:
    """The kind of an exported file, in words.

    >>> kind_of("onnx/model_quantized.onnx"), kind_of("stablehlo/model.bin")
    ('ONNX int8', 'StableHLO')
    """
    kind = "ONNX" if file.endswith(".onnx") else "StableHLO"
    return f"{kind} int8" if is_int8(file) else kind


def short_names(names: Sequence[str]) -> dict[str, str]:
    """For each name, the shortest end of its path that differs from the others.

    >>> short_names(["/data/runs/tiny", "teacher/student", "old/tiny"])
    {'/data/runs/tiny': 'runs/tiny', 'teacher/student': 'teacher', 'old/tiny': 'old/tiny'}
    """
    parts = {}
    for name in names:
        of_name = [part for part in name.split("/") if part] or [name]
        # the model of a run has the run's name
        is_model = len(of_name) > 1 and of_name[-1] == "student" and not is_begun(Path(name))
        parts[name] = of_name[:-1] if is_model else of_name
    short = {}
    for name, path in parts.items():
        others = [other for key, other in parts.items() if key != name]
        count = next((k for k in range(1, len(path)) if all(path[-k:] != other[-k:] for other in others)), len(path))
        short[name] = "/".join(path[-count:])
    return short if len(set(short.values())) == len(short) else {name: name for name in names}


def read_all(names: Sequence[str]) -> tuple[list[Run], list[Named]]:
    """The runs among the names, with each member of a population as a run; and the other names, which are models.

    Raises:
        InputError: a name is not a directory or file, none is a run, or the runs are of different tasks.
    """
    runs: list[Run] = []
    models: list[Named] = []
    for name in dict.fromkeys(names):
        path = Path(name)
        if is_begun(path):
            runs += read_run(name)
        elif (path / "student" / "config.json").is_file() and is_begun(path.parent):
            runs += [run for run in read_run(str(path.parent)) if run.directory == path]
        elif exported_file(path) is not None and path.is_dir():
            for file in exported_files(path):
                kind = kind_of(str(file.relative_to(path)))
                models.append(Named(f"{name}, {kind}", str(file), is_exported=True))
        elif path.is_file() or (path / "config.json").is_file():
            models.append(Named(name, name, is_exported=exported_file(path) is not None))
        else:
            raise InputError(f"{name}: holds neither a run ({RECORD}) nor a model (config.json)")
    if not runs:
        raise InputError(
            f"{', '.join(names)}: no directory of a run among them, which says what task and rows a report is of: name"
            " the --out of tinybert distill, finetune or pretrain"
        )
    tasks = [run.settings["task"] for run in runs]
    if len(set(tasks)) > 1:
        raise InputError(f"the runs are of the tasks {' and '.join(dict.fromkeys(tasks))}: a report is of one task")
    return runs, models


def read_run(name: str) -> list[Run]:
    """The members of a run.

    Raises:
        InputError: its record cannot be read.
    """
    out = Path(name)
    path = out / RECORD
    try:
        record = json.loads(path.read_text("utf-8"))
        settings = record.pop("experiment")
        members = settings if isinstance(settings, list) else [settings]
        for member in members:
            _ = member["task"], [stage["objective"]["name"] for stage in member["stages"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is no record of a run ({type(error).__name__}: {error})") from None
    speed = read_log(out / "speed.jsonl")
    runs = []
    for number, directory in enumerate(member_dirs(out, len(members))):
        facts = dict(record)
        if isinstance(prints := facts.get("fingerprints"), list):
            facts["fingerprints"] = prints[number]
        of_member, population = (name, "") if len(members) == 1 else (f"{name} member {number}", name)
        metrics = read_log(directory / "metrics.jsonl")
        model = directory / "student"
        runs.append(Run(of_member, directory, members[number], facts, metrics, speed, model, population))
    return runs


def compressed(out: Path, model: str, task: str, source: DataSource, max_length: int) -> Run:
    """A model that `tinybert compress` made, as a run without stages."""
    described = {"task": task, "source": dataclasses.asdict(source), "stages": [], "teacher": model}
    return Run(str(out), out, described | {"max_length": max_length}, {}, [], [], out)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; [] if there is no file. A broken line of a killed run is skipped."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text("utf-8", "replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and {"stage", "step"} <= line.keys():
            lines.append(line)
    return lines


def source_of(run: Run) -> DataSource:
    """The source of a run's rows.

    Raises:
        InputError: the record is of another version of this package.
    """
    source: dict[str, Any] = run.settings["source"]
    fields: dict[str, Any] = {key: tuple(x) if isinstance(x, list) else x for key, x in source.items()}
    try:
        return DataSource(**fields)
    except TypeError as error:
        raise InputError(f"{run.directory / RECORD}: is of another version of this package ({error})") from None


def chain_of(model: Path) -> Table | None:
    """The table in a model's card of the model after each compression method and stage; None if there is none."""
    card = model / "README.md"
    lines = card.read_text("utf-8", "replace").splitlines() if card.is_file() else []
    start = next((i for i, line in enumerate(lines) if line.startswith("| after |")), None)
    if start is None:
        return None
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows[0], [row for row in rows[2:] if len(row) == len(rows[0])]
