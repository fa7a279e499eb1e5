"""The directory of a run: `experiment.json`, and the model card of its student."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
from jax.sharding import Mesh

from tinybert_jax.batch import Params
from tinybert_jax.compression.links import Link, markdown, table
from tinybert_jax.devices import processes
from tinybert_jax.errors import InputError, nearest_existing
from tinybert_jax.models.files.card import front_matter, shown, task_results, use_of, without_places
from tinybert_jax.models.parameters import count_parameters, resize_vocabulary
from tinybert_jax.precision import float32_precision
from tinybert_jax.settings.choices import FROM_LAYERS, student_shape
from tinybert_jax.settings.experiment import Experiment
from tinybert_jax.settings.sources import CorpusSource
from tinybert_jax.settings.tasks import get_task
from tinybert_jax.settings.teachers import all_teachers
from tinybert_jax.tasks.kinds import set_suffix
from tinybert_jax.training.inputs import Inputs

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "tinybert_jax")
FORMAT_VERSION = 4  # of the states in checkpoints; increase it when newer code cannot resume older runs


def is_begun(out: Path | str) -> bool:
    """Whether the directory holds a run, which can be resumed."""
    return os.path.isfile(os.path.join(out, "experiment.json"))  # Path.is_file raises on a name that is too long


def check_out(out: Path, resume: bool) -> None:
    """Refuse an output directory that would be overwritten, cannot be written, or holds nothing to resume.

    Raises:
        InputError: one of these.
    """
    if resume and not is_begun(out):
        raise InputError(f"{out}: holds no run to resume (no experiment.json); leave --resume out to start one")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; --out takes a directory")
    if not resume and out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: exists already; choose another --out, or continue that run with --resume")
    parent = nearest_existing(out)
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(
            f"{out}: cannot be written: {parent} is {'read-only' if parent.is_dir() else 'not a directory'}"
        )


def member_dirs(out: Path, members: int) -> list[Path]:
    """The directories of a run's members: `out` for a single one, else `member0`, `member1`, ... in it."""
    return [out] if members == 1 else [out / f"member{number}" for number in range(members)]


def member_names(experiments: Sequence[Experiment]) -> list[str]:
    """The members' names in messages: their numbers, and the settings in which they differ, the seed first."""
    described = [_flat(json.loads(json.dumps(experiment.as_dict()))) for experiment in experiments]
    fields = {"seed": None} | {field: None for flat in described for field in flat if field != "data_seed"}
    differing = [field for field in fields if len({json.dumps(flat.get(field)) for flat in described}) > 1]
    names = []
    for number, flat in enumerate(described):
        numbers = ", ".join(f"{field} {flat.get(field)}" for field in differing)
        names.append(f"member {number} ({numbers})" if numbers else f"member {number}")
    return names


def create(out: Path, experiments: Sequence[Experiment], inputs: Sequence[Inputs], mesh: Mesh) -> None:
    """Create the directory and write `experiment.json`."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as temporary:
        written = Path(temporary) / "experiment.json"
        written.write_text(json.dumps(describe(experiments, inputs, mesh), indent=2) + "\n", "utf-8")
        os.replace(written, out / "experiment.json")  # from now on the run can be resumed


def check_processes(experiments: Sequence[Experiment], inputs: Sequence[Inputs], mesh: Mesh) -> None:
    """Compare this process's run with process 0's. A difference could hang the first collective, or mix two runs.

    Raises:
        InputError: a field differs.
    """
    described = json.dumps(describe(experiments, inputs, mesh))
    now, primary = _flat(json.loads(described)), _flat(json.loads(processes.from_primary(described)))
    for field in sorted(primary.keys() | now.keys()):
        here, there = now.get(field), primary.get(field)
        if here != there and not field.endswith(".source.processes"):
            raise InputError(
                f"{field} is {here!r} in process {jax.process_index()}, and {there!r} in process 0: give all"
                " processes the same command, models and rows"
            )


def check_same(out: Path, experiments: Sequence[Experiment], inputs: Sequence[Inputs], mesh: Mesh) -> None:
    """Compare a run with the one in `out` that it resumes. Rows and models may have moved.

    Raises:
        InputError: a field, the content of files, or a model differs. Differences that change results only by rounding
            (package versions, devices, the size of the cache of teacher outputs) print a warning.
    """
    path = out / "experiment.json"
    try:
        started = _flat(json.loads(path.read_text("utf-8")))
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error})") from None
    now = _flat(describe(experiments, inputs, mesh))
    for field in sorted(started.keys() | now.keys()):
        before, after = started.get(field), now.get(field)
        if before == after or field.endswith((".source.processes", ".checkpoint_every")):
            continue  # the result does not depend on these
        if field.startswith("fingerprints.") or _is_place(field, started):
            continue
        if field.startswith(("versions.", "devices.")) or field.endswith(".teacher_cache_gb"):
            print(
                f"warning: {field} was {before} when the run started and is {after} now: the result may differ by"
                " rounding",
                file=sys.stderr,
            )
        else:
            raise InputError(
                f"{out}: cannot resume: {field} was {before!r} and is {after!r}: give the command as it was, or take"
                " another --out"
            )
    for number, experiment in enumerate(experiments):
        prefix = "fingerprints." if len(experiments) == 1 else f"fingerprints.{number}."
        before, after = ({k: v for k, v in flat.items() if k.startswith(prefix)} for flat in (started, now))
        names = [name.removeprefix(prefix) for name in {**before, **after} if before.get(name) != after.get(name)]
        if names:
            raise InputError(
                f"{out}: cannot resume: {_origins(experiment, names)} changed since the run started: give what it"
                " started with, or another --out"
            )


def _is_place(field: str, started: dict[str, Any]) -> bool:
    """Whether the field is the place of rows or of a model, which are compared by their fingerprints instead."""
    if field.endswith(".model"):  # a student preset or size has no fingerprint
        return field.replace("experiment.", "fingerprints.", 1) in started
    return bool(
        re.search(
            r"\.(source\.(data|train|dev|test|tfds|unlabelled\.\d+|files\.\d+)|augmented"
            r"|teacher(\.members\.\d+|\.layer_teacher)?)$",
            field,
        )
    )


def _origins(experiment: Experiment, names: Sequence[str]) -> str:
    """The models or files to which fingerprints with these names belong."""
    models = {"model": experiment.model, "teacher": str(experiment.teacher)}
    if changed := [f"the {name} {models[name]}" for name in models if name in names]:
        return " and ".join(changed)  # with a model, the tokens of the rows may have changed
    source = experiment.source
    if isinstance(source, CorpusSource):
        return f"the text of {', '.join(source.files)}"
    task, files = get_task(experiment.task), []
    for name in names:
        split: Literal["train", "dev"] = "train" if name == "train" or source.dev_share is not None else "dev"
        of_second = name not in ("train", "dev")
        if source.tfds is not None:
            files.append(source.tfds)
        elif source.data is not None:
            files.append(str(Path(source.data) / (get_task(task.second) if of_second else task).file(split)))
        elif (file := getattr(source, split)) is not None:
            files.append(file)
        if name == "train":
            files += [*source.unlabelled, *([] if experiment.augmented is None else [experiment.augmented])]
    tokenizer = f", or the tokenizer of {experiment.model}," if {"train", "dev"} <= set(names) else ""
    return f"the rows of {', '.join(sorted(set(files)))}{tokenizer}"


def describe(experiments: Sequence[Experiment], inputs: Sequence[Inputs], mesh: Mesh) -> dict[str, Any]:
    """The content of `experiment.json`: the settings, and everything else that the result depends on.

    In a population, "experiment" and "fingerprints" are lists.
    """
    fingerprints = [member.fingerprints for member in inputs]
    return {
        "format": FORMAT_VERSION,
        "experiment": settings(experiments),
        "fingerprints": fingerprints if len(experiments) > 1 else fingerprints[0],
        "devices": {
            "kind": mesh.devices.flat[0].device_kind,
            "mesh": dict(mesh.shape),
            "processes": jax.process_count(),
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
            "matmul_precision": float32_precision(),
        },
        "versions": {name: _version(name) for name in PACKAGES},
    }


def settings(experiments: Sequence[Experiment]) -> Any:
    """The entry "experiment" of `experiment.json`, with lists instead of tuples, as after reading it."""
    members = json.loads(json.dumps([experiment.as_dict() for experiment in experiments]))
    return members if len(members) > 1 else members[0]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict | list):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {name: leaf for key, value in items for name, leaf in _flat(value, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): tree}


def write_model_card(
    student: Path,
    experiment: Experiment,
    inputs: Inputs,
    params: Params,
    scores: dict[str, float],
    teacher_scores: dict[str, float] | None,
    chain: list[Link],
) -> None:
    """Write the `README.md` of a student directory: what the model is, its scores, its recipe, and how to use it.

    It may be published: it has only the names of models and files. Their full paths are in `experiment.json`.
    """
    config, use = inputs.config, use_of(inputs.head, inputs.passages is not None)
    title = f"{shown(experiment.model)} on {experiment.task}"
    rows = [f"| {name} | {value:.4f} | {_number(teacher_scores, name)} |" for name, value in scores.items()]
    if not scores:
        rows = [f"| {'its head is not trained yet' if inputs.dev else 'not trained on a task yet'} | - | - |"]
    if experiment.distils:
        method = next(stage.objective.method for stage in experiment.stages if stage.objective.distils)
        named = ", ".join(shown(x) if isinstance(x, str) else str(x) for x in all_teachers(experiment.teacher))
        how = f"distilled from `{named}` by the method of {method}"
    else:
        how = "trained on masked words" if experiment.masks_tokens else "trained on labels"
    metadata = front_matter(
        title,
        config,
        _made_from(experiment),
        library=use.library(config),
        pipeline_tag=use.pipeline,
        tags=["tinybert", "distillation"] if experiment.distils else [config.model_type],
        results=_results(experiment, inputs, scores, use.pipeline),
    )
    text = f"""{metadata}# {title}
{config.family.title} of {config.num_hidden_layers} layers, {config.hidden_size} wide,
{count_parameters(resize_vocabulary(params, config.vocab_size)):,} parameters, {how}, with tinybert_jax.

| dev set | this model | teacher |
|---|---|---|
{chr(10).join(rows)}

```python
import tinybert_jax as tb
{use.code}
```
{use.loading(config)}

{_chain(chain)}## Recipe
```json
{json.dumps(without_places(experiment.as_dict()), indent=2)}
```
"""
    (student / "README.md").write_text(text, "utf-8", "backslashreplace")


def _made_from(experiment: Experiment) -> list[str]:
    """The names of the models that taught the student, or from which it started."""
    names = []
    if experiment.distils or experiment.start in FROM_LAYERS:
        names += [teacher for teacher in all_teachers(experiment.teacher) if isinstance(teacher, str)]
    if student_shape(experiment.model) is None:
        names.append(experiment.model)
    return [name for name in dict.fromkeys(names) if not os.path.isfile(os.path.expanduser(name))]


def _results(experiment: Experiment, inputs: Inputs, scores: dict[str, float], pipeline: str) -> list[EvalResult]:
    """The scores of all dev sets."""
    results: list[EvalResult] = []
    if not scores:
        return results  # as after training on raw text, which is no task
    task = get_task(experiment.task)
    for name in inputs.dev:
        suffix = set_suffix(name)
        part = get_task(task.second) if suffix else task
        results += task_results(part, experiment.source, scores, pipeline, suffix)
    return results


def _chain(chain: list[Link]) -> str:
    """The card's section with the model after each compression method and stage; "" without methods."""
    return f"## Compression\n{markdown(*table(chain))}\n\n" if chain else ""


def _number(scores: dict[str, float] | None, name: str) -> str:
    return f"{scores[name]:.4f}" if scores and name in scores else "-"
