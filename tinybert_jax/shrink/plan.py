"""The plan of a search: its candidates, their size and time on this machine, and the steps of their training."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinybert_jax.data.labels import named_by
from tinybert_jax.data.rows import recombines
from tinybert_jax.errors import InputError
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.files.directory import load_config
from tinybert_jax.models.files.hub import fingerprint, resolve
from tinybert_jax.models.files.tokenizer import load_tokenizer, trained_length
from tinybert_jax.models.fit import check_positions
from tinybert_jax.settings.choices import student_shape
from tinybert_jax.settings.compression import CompressionSettings, Prune
from tinybert_jax.settings.experiment import Experiment
from tinybert_jax.settings.objectives import WORDS, Transformer
from tinybert_jax.settings.recipes import choose_recipe
from tinybert_jax.settings.sources import DataSource
from tinybert_jax.settings.stages import Stage
from tinybert_jax.settings.tasks import SplitName, get_task
from tinybert_jax.shrink.aim import Aim, Candidate
from tinybert_jax.tasks.kinds import load_split, with_template_of

TEACHER = "teacher"  # the candidate that is not trained: the teacher itself, in int8
PRUNED = (0.5, 0.25)  # shares of the teacher's multiply-adds
STEPS = (100, 200, 400)  # of the Transformer stage, by rung; half as many on the teacher's outputs follow
FEWEST = 20
SPLITS: tuple[SplitName, ...] = ("train", "dev")


@dataclass(frozen=True)
class Plan:
    """All that determines a search, except the rows and the teacher's parameters."""

    teacher: str
    task: str
    source: DataSource
    aim: Aim
    candidates: tuple[Candidate, ...]
    steps: tuple[int, ...]
    batch_size: int
    max_length: int
    seed: int
    budget: float | None  # seconds; None: the steps of STEPS
    fingerprints: dict[str, str]  # of the teacher, and of the rows as its tokens

    def experiment(self, candidate: Candidate, rung: int) -> Experiment:
        """The training of a candidate in a rung, from its start. `tinybert distill` can repeat it."""
        task = get_task(self.task)
        recipe = choose_recipe("default", candidate.model, task, candidate.is_copy)
        layers = Stage(
            Transformer(),
            max_steps=self.steps[rung],
            batch_size=self.batch_size,
            learning_rate=recipe.layers.learning_rate,
            schedule="constant",
        )
        outputs = Stage(
            WORDS[task.kind.distilled_by](),
            max_steps=max(1, self.steps[rung] // 2),
            batch_size=self.batch_size,
            learning_rate=recipe.outputs.learning_rate,
        )
        return Experiment(
            task=self.task,
            source=self.source,
            model=candidate.model,
            # a compressed teacher is close to the teacher, so it learns outputs alone
            stages=(outputs,) if student_shape(candidate.model) is None else (layers, outputs),
            teacher=self.teacher,
            max_length=self.max_length,
            seed=self.seed,
        )

    @property
    def seconds(self) -> float:
        """The estimated time of all training, in seconds."""
        trained = [c for c in self.candidates if c.is_trained and self.aim.allows(c)]
        total = 0.0
        for rung in range(len(self.steps)) if trained else ():
            stages = [(c, stage) for c in trained for stage in self.experiment(c, rung).stages]
            mean = sum(c.step_seconds * (stage.max_steps or 0) for c, stage in stages) / len(trained)
            total += mean * max(1, len(trained) >> rung)  # a half is left after each rung
        return total

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        fields = dataclasses.asdict(self)
        fields["candidates"] = [candidate._asdict() for candidate in self.candidates]
        return json.loads(json.dumps(fields))


def described(
    teacher: str,
    task: str,
    source: DataSource,
    aim: Aim,
    batch_size: int,
    max_length: int | None,
    seed: int,
    budget: float | None = None,
) -> Plan:
    """The plan of a search, without candidates.

    Args:
        teacher: Hugging Face directory or hub id of a model that was fine-tuned on the task.
        task: a row of the task table.
        source: where the rows are.
        aim: the aim of the search.
        batch_size: rows per step.
        max_length: tokens per row; None: the length that the teacher was trained with.
        seed: seed of every training.
        budget: seconds that the training may take, roughly; None: the steps of STEPS.

    Raises:
        InputError: the task is unknown, the teacher or the rows cannot be read, a setting is wrong, or the dev rows
            have no labels or all the same.
    """
    row = get_task(task)
    config = load_config(resolve(teacher))
    tokenizer: Any = load_tokenizer(teacher, config)
    source = recombines(row, with_template_of(tokenizer, row, source)).source
    max_length = trained_length(tokenizer, config) if max_length is None else max_length
    check_positions(teacher, config, max_length)
    itself = Candidate(TEACHER, teacher, milliseconds=0.0, megabytes=0.0, step_seconds=0.0)
    plan = Plan(teacher, task, source, aim, (itself,), STEPS, batch_size, max_length, seed, budget, {})
    plan.experiment(itself, rung=0)  # refuses wrong settings before anything is measured
    with named_by(teacher):
        rows = {split: load_split(row, source, split, tokenizer, max_length, config.id2label) for split in SPLITS}
    rows["dev"].check_measurable()
    fingerprints = {"teacher": fingerprint(resolve(teacher))}
    fingerprints |= {split: loaded.tokens.fingerprint for split, loaded in rows.items()}
    return dataclasses.replace(plan, candidates=(), steps=(), fingerprints=fingerprints)


def sizes(teacher: BertConfig) -> list[str]:
    """Sizes of students: all, half or a quarter of the teacher's layers, and its width or half of it."""
    layers, width, heads = teacher.num_hidden_layers, teacher.hidden_size, teacher.num_attention_heads
    depths = dict.fromkeys(max(2, layers // part) for part in (1, 2, 4) if layers // part or part == 1)
    widths = [width, *[width // 2] * (width // 2 % heads == 0)]
    return [f"{depth}x{w}" for depth in depths for w in widths if depth <= layers and (depth, w) != (layers, width)]


def methods(most: float) -> dict[str, tuple[CompressionSettings, ...]]:
    """The compression of the teacher for each candidate that is made from it, by the candidate's name.

    Args:
        most: largest share of the teacher's multiply-adds that is tried.
    """
    return {f"pruned-{share:g}": (Prune(share),) for share in PRUNED if share <= most}


def steps_within(plan: Plan, budget: float) -> tuple[int, ...]:
    """The steps of the rungs with which all training of a plan's candidates takes about `budget` seconds.

    Raises:
        InputError: the time is too short for FEWEST steps in the first rung.
    """
    step = dataclasses.replace(plan, steps=STEPS).seconds / STEPS[0]  # seconds for each step of the first rung
    first = int(budget / step) // 10 * 10 if step else STEPS[0]
    if first < FEWEST:
        raise InputError(
            f"--budget is {budget / 60:.0f} minutes, and the candidates need about {FEWEST * step / 60:.0f}: give more"
            " time"
        )
    return tuple(first << rung for rung in range(len(STEPS)))


def save(plan: Plan, path: Path) -> None:
    """Write `plan.json`."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(plan.as_dict(), indent=2) + "\n", "utf-8")
    part.replace(path)


def load(path: Path, described: Plan) -> Plan:
    """The saved plan of a search. It has the measured times, so that a resumed search makes the same decisions.

    Args:
        path: the path of `plan.json`.
        described: the plan of the command that continues the search. Its candidates and steps are not used.

    Raises:
        InputError: the file cannot be read, or the command describes another search.
    """
    try:
        fields = json.loads(path.read_text("utf-8"))
        candidates = tuple(Candidate(**candidate) for candidate in fields["candidates"])
        plan = dataclasses.replace(described, candidates=candidates, steps=tuple(fields["steps"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read as a plan ({error})") from None
    now = plan.as_dict()
    if fields.keys() != now.keys():
        raise InputError(f"{path}: was begun by another version of tinybert_jax: take another --out")
    if fields["fingerprints"] != now["fingerprints"]:
        raise InputError(f"{path}: the teacher or the rows changed since: give those it began with, or another --out")
    for name in sorted(now):
        if fields[name] != now[name]:
            raise InputError(
                f"{path}: was begun with {name} {fields[name]!r}, and now it is {now[name]!r}: give the same"
                " command, or another --out"
            )
    return plan


def parse_time(option: str, text: str) -> float:
    """Parse a time of a command line, in seconds.

    Raises:
        InputError: it has another form.

    >>> parse_time("--budget", "2h"), parse_time("--budget", "45m")
    (7200.0, 2700.0)
    """
    units = {"h": 3600.0, "m": 60.0, "s": 1.0}
    try:
        seconds = float(text[:-1]) * units[text[-1:]]
    except (ValueError, KeyError):
        raise InputError(f"{option} {text}: give a time, as 2h, 45m or 90s") from None
    if not 0 < seconds < float("inf"):
        raise InputError(f"{option} {text}: give a time above 0")
    return seconds
