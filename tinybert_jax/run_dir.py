"""A run's directory: experiment.json, metrics.jsonl, TensorBoard, speed.jsonl, and the student's model card."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import jax
from jax.sharding import Mesh
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from tinybert_jax import processes
from tinybert_jax.config import Head, InputError, Params
from tinybert_jax.experiment import Experiment
from tinybert_jax.inputs import Inputs
from tinybert_jax.model import count_parameters, resize_vocabulary
from tinybert_jax.precision import float32_precision

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "tinybert_jax")
FORMAT_VERSION = 2  # of the states in checkpoints; count it up when a run cannot be resumed by newer code

PIPELINES: dict[Head, tuple[str, str]] = {
    "encoder": ("feature-extraction", "AutoModel"),
    "sequence": ("text-classification", "AutoModelForSequenceClassification"),
    "tokens": ("token-classification", "AutoModelForTokenClassification"),
    "span": ("question-answering", "AutoModelForQuestionAnswering"),
    "masked_lm": ("fill-mask", "AutoModelForMaskedLM"),
}
PREDICT = """predict = tb.load_predictor("this directory")
print(predict(["a text", "another text"]))  # or pairs of texts, if the task has pairs"""
LOAD = """config, params = tb.load_hf("this directory")"""


def is_begun(out: Path | str) -> bool:
    """Whether the directory holds a run, which can be resumed."""
    return os.path.isfile(os.path.join(out, "experiment.json"))  # of a name that is too long, Path.is_file raises


def check_out(out: Path, resume: bool) -> None:
    """Refuse an output directory that would be overwritten, cannot be written, or holds nothing to resume.

    Raises:
        InputError: says which of these, and what to do.
    """
    if resume and not is_begun(out):
        raise InputError(f"{out}: holds no run to resume (no experiment.json); leave --resume out to start one")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; --out takes a directory")
    if not resume and out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: exists already; choose another --out, or continue that run with --resume")
    parent = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(
            f"{out}: cannot be written: {parent} is {'read-only' if parent.is_dir() else 'not a directory'}"
        )


def member_dirs(out: Path, members: int) -> list[Path]:
    """The directories of a run's members: its own where there is one, else `member0`, `member1`, ... in it."""
    return [out] if members == 1 else [out / f"member{number}" for number in range(members)]


def create(out: Path, experiments: Sequence[Experiment], inputs: Sequence[Inputs], mesh: Mesh) -> None:
    """Make the directory and write `experiment.json`."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as temporary:
        written = Path(temporary) / "experiment.json"
        written.write_text(json.dumps(describe(experiments, inputs, mesh), indent=2) + "\n", "utf-8")
        os.replace(written, out / "experiment.json")  # from now on there is a run, which can be resumed


def check_processes(experiments: Sequence[Experiment], inputs: Sequence[Inputs], mesh: Mesh) -> None:
    """Compare this process's run with process 0's: what differs would hang the first collective, or mix in silence.

    Raises:
        InputError: names the field that differs.
    """
    described = json.dumps(describe(experiments, inputs, mesh))
    now, theirs = _flat(json.loads(described)), _flat(json.loads(processes.from_primary(described)))
    for field in sorted(theirs.keys() | now.keys()):
        here, there = now.get(field), theirs.get(field)
        if here != there and not field.endswith(".source.processes"):
            raise InputError(
                f"{field} is {here!r} in process {jax.process_index()}, and {there!r} in process 0: give all"
                " processes the same command, models and rows"
            )


def check_same(out: Path, experiments: Sequence[Experiment], inputs: Sequence[Inputs], mesh: Mesh) -> None:
    """Compare a run that is to be resumed with the one that was started.

    Raises:
        InputError: names the field that differs; what differs by rounding only (package versions, devices, whether the
            teacher's outputs are kept) gives a warning.
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
            continue  # what the result does not depend on
        if field.startswith(("versions.", "devices.")) or field.endswith(".teacher_cache_gb"):
            print(
                f"warning: {field} was {before} when the run started and is {after} now: the result may differ by"
                " rounding",
                file=sys.stderr,
            )
        else:
            raise InputError(
                f"{out}: cannot resume: {field} was {before!r} and is {after!r}: give {before!r} again, or another"
                " --out"
            )


def describe(experiments: Sequence[Experiment], inputs: Sequence[Inputs], mesh: Mesh) -> dict[str, Any]:
    """What `experiment.json` holds: the settings, and what else the result depends on.

    Of a population, both parts are lists.
    """
    fingerprints = [own.fingerprints for own in inputs]
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
    """`experiment.json`'s "experiment", as it is read back: tuples are lists."""
    members = json.loads(json.dumps([dataclasses.asdict(experiment) for experiment in experiments]))
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


class MetricsLog:
    """Every logged number of one stage, in `metrics.jsonl` and in TensorBoard; written when `write` returns."""

    def __init__(self, out: Path, stage: str, start_step: int) -> None:
        self._stage = stage
        self._file = _continued(out / "metrics.jsonl", stage, start_step)
        folder = out / "tensorboard" / stage
        folder.mkdir(parents=True, exist_ok=True)
        # not by a SummaryWriter: its thread would die of a full disk in silence, and the run wait for it forever
        self._events = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        restart = SessionLog(status=SessionLog.START)  # has TensorBoard forget the steps that come again
        self._events.write_event(Event(wall_time=time.time(), step=start_step + 1, session_log=restart))

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Log numbers as of `step`, the count of steps done."""
        self._file.write(json.dumps({"stage": self._stage, "step": step} | numbers) + "\n")
        self._file.flush()
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._events.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        self._events.flush()

    def close(self) -> None:
        self._file.close()
        self._events.close()


def _continued(path: Path, stage: str, start_step: int) -> TextIO:
    """A log of JSON lines, to be appended to: a resumed stage logs the steps after its checkpoint again."""
    if path.is_file():
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.endswith("}")]
        kept = [line for line in lines if line["stage"] != stage or line["step"] <= start_step]
        shortened = path.with_suffix(".tmp")
        shortened.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")
        shortened.replace(path)
    return path.open("a", encoding="utf-8")


class SpeedLog:
    """How fast a stage trained, in `speed.jsonl`: apart from the metrics, which repeat to the bit where time does not.

    A line covers the steps since the last one, without evaluations and checkpoints: real tokens (no padding), the
    share that they are of all positions, and the real tokens a second. The first lines include compilation.
    """

    def __init__(self, out: Path, stage: str, start_step: int) -> None:
        self._stage = stage
        self._file = _continued(out / "speed.jsonl", stage, start_step)
        self._tokens, self._positions, self._seconds = 0.0, 0, 0.0
        self.restart()

    def restart(self) -> None:
        """What was done since the last step is not counted."""
        self._last = time.perf_counter()

    def add(self, positions: int, real: float) -> None:
        """Count a step that is done, on that many positions, of which a share is real."""
        now = time.perf_counter()
        self._seconds, self._last = self._seconds + now - self._last, now
        self._tokens, self._positions = self._tokens + positions * real, self._positions + positions

    def write(self, step: int) -> None:
        """Log what was counted, as of `step`, and start anew."""
        numbers = {
            "tokens": round(self._tokens),
            "real_tokens": round(self._tokens / self._positions, 4),
            "seconds": round(self._seconds, 4),
            "tokens_per_second": round(self._tokens / self._seconds, 1),
        }
        self._file.write(json.dumps({"stage": self._stage, "step": step} | numbers) + "\n")
        self._file.flush()
        self._tokens, self._positions, self._seconds = 0.0, 0, 0.0

    def close(self) -> None:
        self._file.close()


def write_model_card(
    student: Path,
    experiment: Experiment,
    inputs: Inputs,
    params: Params,
    scores: dict[str, float],
    teacher_scores: dict[str, float] | None,
) -> None:
    """`README.md` of a student directory: what it is, its scores, its recipe, and how to use it."""
    config, (pipeline, auto_model) = inputs.config, PIPELINES[inputs.head]
    rows = [f"| {name} | {value:.4f} | {_number(teacher_scores, name)} |" for name, value in scores.items()]
    if not scores:
        rows = [f"| {'its head is not trained yet' if inputs.dev else 'not trained on a task yet'} | - | - |"]
    use = PREDICT if inputs.head == "sequence" else LOAD
    if distilled := any(stage.distils for stage in experiment.stages):
        how = f"distilled from `{experiment.teacher}` by the method of [TinyBERT](https://arxiv.org/abs/1909.10351)"
    else:
        how = "trained on masked words" if inputs.head == "masked_lm" else "trained on labels"
    text = f"""---
library_name: transformers
pipeline_tag: {pipeline}
tags: [{"tinybert, distillation" if distilled else "bert"}]
---
# {experiment.model} on {experiment.task}
A BERT of {config.num_hidden_layers} layers, {config.hidden_size} wide,
{count_parameters(resize_vocabulary(params, config.vocab_size)):,} parameters, {how}, with tinybert_jax.

| dev set | this model | teacher |
|---|---|---|
{chr(10).join(rows)}

```python
import tinybert_jax as tb
{use}
```
`transformers` loads it too: `{auto_model}.from_pretrained("this directory")`.

## Recipe
```json
{json.dumps(dataclasses.asdict(experiment), indent=2)}
```
"""
    (student / "README.md").write_text(text, "utf-8")


def _number(scores: dict[str, float] | None, name: str) -> str:
    return f"{scores[name]:.4f}" if scores else "-"
