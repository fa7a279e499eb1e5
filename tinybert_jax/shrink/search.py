"""The search: train all candidates a little, the better half longer, and export the one that meets the aim."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from tinybert_jax.batch import Params
from tinybert_jax.compression.compress import compress
from tinybert_jax.compression.table import check_methods
from tinybert_jax.errors import InputError, check_unused
from tinybert_jax.export.export import FORMATS, export_model
from tinybert_jax.inference.benchmark import benchmark
from tinybert_jax.inference.evaluate import evaluate
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.files.directory import load_hf, save_description
from tinybert_jax.models.files.hub import CARD
from tinybert_jax.models.files.tokenizer import load_tokenizer
from tinybert_jax.models.fit import fit_head
from tinybert_jax.models.heads import HEADS
from tinybert_jax.models.parameters import forward_flops, init_params
from tinybert_jax.reports.students import TOGETHER, milliseconds, size
from tinybert_jax.settings.choices import MIN_LENGTH
from tinybert_jax.settings.tasks import get_task
from tinybert_jax.shrink import plan as plans
from tinybert_jax.shrink.aim import Aim, Candidate, Outcome, front, pick, survivors
from tinybert_jax.shrink.plan import TEACHER, Plan
from tinybert_jax.students.presets import student_config
from tinybert_jax.students.start import copies
from tinybert_jax.tasks.kinds import load_split
from tinybert_jax.tasks.metrics import share_of
from tinybert_jax.training.diverged import Diverged
from tinybert_jax.training.record import is_begun
from tinybert_jax.training.run import run

FORM = "onnx-int8"
WEIGHT_BITS = 7  # for every processor; as many operations as 8
PICK = '''"""The pick of a search, {name}. `tinybert run pick.py --seed 1` trains it again."""

from tinybert_jax import {names}

experiment = {experiment}
'''
BACKWARD = 3  # a training step computes about three times what its forward pass does


class Search(NamedTuple):
    """The result of a search."""

    plan: Plan
    teacher_score: float  # in float32
    outcomes: list[Outcome]  # of every candidate, after its longest training
    front: list[Outcome]
    pick: Outcome | None  # None: no candidate meets the aim
    directory: Path | None  # of the exported pick; `student` beside it is the model that was exported
    runs: list[Path]  # the longest run of every trained candidate


def prepare(described: Plan, out: Path, resume: bool = False, say: Callable[[str], None] = print) -> Plan:
    """Choose and measure the candidates of a search, or read them from `out/plan.json`.

    Args:
        described: the search, without candidates.
        out: a new or empty directory for the search.
        resume: continue the search in `out`, with the measured times of the saved plan, so the result is the same.
        say: prints a line.

    Raises:
        InputError: a model or rows cannot be read or do not fit; `out` holds something else; or no candidate is within
            the limits of the aim.
    """
    path = out / "plan.json"
    if resume:
        if not path.is_file():
            raise InputError(f"{out}: holds no search to resume (no plan.json); leave --resume out to start one")
    else:
        check_unused(out)
        out.mkdir(parents=True, exist_ok=True)
        plans.save(described, path)  # from now on the search can be resumed
    plan = plans.load(path, described)
    if not plan.candidates:
        try:
            plan = _planned(plan, out, say)
        except InputError:  # the next command may have another aim
            for folder in (out / "starts", *out.glob(".*")):
                shutil.rmtree(folder, ignore_errors=True)
            path.unlink()
            raise
        plans.save(plan, path)
    return plan


def search(plan: Plan, out: Path, say: Callable[[str], None] = print) -> Search:
    """Train the candidates of a plan, rung by rung, and export the one that meets the aim. Finished runs are reused.

    Args:
        plan: the result of `prepare`.
        out: the directory of the search.
        say: prints a line.

    Raises:
        training.loop.Stopped: as in `run`; the same call continues.
    """
    teacher_score = _kept(out / "teacher.json", lambda: {"score": _score(plan, plan.teacher)})["score"]
    if not teacher_score > 0:
        raise InputError(
            f"{plan.teacher}: scores {teacher_score:.4f} on the dev rows, of which no share can be kept: fine-tune it"
            " first"
        )
    say(f"teacher: {get_task(plan.task).selection} {teacher_score:.4f}; aim: {plan.aim}")
    outcomes: dict[str, Outcome] = {}

    def tried(candidates: Sequence[Candidate], rung: int) -> list[Outcome]:
        """The outcomes of candidates in a rung, without those that ended."""
        ended_well = []
        for candidate in candidates:
            say(f"rung {rung + 1} of {len(plan.steps)}: {candidate.name}")
            outcome = _outcome(plan, candidate, rung, out, say)
            if outcome is not None:
                ended_well.append(outcome)
                outcomes[candidate.name] = outcome
                say(
                    f"{candidate.name}: {outcome.score:.4f}, {share_of(outcome.score, teacher_score)} of the teacher's"
                )
        return ended_well

    allowed = [candidate for candidate in plan.candidates if plan.aim.allows(candidate)]
    tried([candidate for candidate in allowed if not candidate.is_trained], rung=0)
    alive = [candidate for candidate in allowed if candidate.is_trained]
    for rung in range(len(plan.steps)):
        alive = survivors(tried(alive, rung), plan.aim, teacher_score)
    final = list(outcomes.values())
    chosen = pick(final, plan.aim, teacher_score)
    directory = None if chosen is None else _deployed(plan, out, chosen)
    runs = [_run(out, outcome.candidate, outcome.rung) for outcome in final if outcome.steps]
    return Search(plan, teacher_score, final, front(final), chosen, directory, runs)


def _planned(described: Plan, out: Path, say: Callable[[str], None]) -> Plan:
    """The plan with its candidates, each measured as it would be deployed, but not trained yet."""
    config, teacher_params = load_hf(described.teacher)
    tokenizer: Any = load_tokenizer(described.teacher, config)
    task = get_task(described.task)
    dev = load_split(task, described.source, "dev", tokenizer, described.max_length, config.id2label)
    texts = [] if dev.rows is None else [*dev.rows.texts]
    tokens = max(MIN_LENGTH, round(float(np.mean(dev.tokens.lengths))))
    teacher_ms = milliseconds(size(TEACHER, config, tokens), tokens, TOGETHER)
    rate = forward_flops(config, tokens) / teacher_ms  # operations per millisecond on this machine
    with _folder(out) as folder:
        starts = {TEACHER: described.teacher}
        configs = {TEACHER: config}
        for name in plans.sizes(config):
            configs[name], _ = fit_head(name, student_config(name, config), None, task, config.id2label, config)
            starts[name] = name
            model = HEADS[task.head].model(configs[name])
            params = init_params(model, jax.random.key(described.seed))
            _write(folder / name, configs[name], params, tokenizer)
        _write(folder / TEACHER, config, teacher_params, tokenizer)

        def timed(names: Iterable[str]) -> dict[str, tuple[float, float]]:
            """Milliseconds and megabytes of candidates, by their names."""
            files = {name: str(folder / name / FORMATS[FORM].path) for name in names}
            measured = benchmark([*files.values()], (1,), () if texts else (tokens,), texts, measure_memory=False)
            by_file = {row.side.model: (row.latencies[0].median, row.bytes / 1e6) for row in measured.measured}
            return {name: by_file[file] for name, file in files.items()}

        most = _largest_share(described, teacher_params, lambda: timed([TEACHER])[TEACHER][0])
        for name, methods in plans.methods(most).items():
            try:
                check_methods(methods, config, task.head)
            except InputError as error:  # as for MPNet, whose heads cannot be removed
                say(f"note: {name} is left out: {error}")
                continue
            start = out / "starts" / name
            if not (start / CARD).is_file():  # the last file that is written
                say(f"{name}: cutting the teacher")
                shutil.rmtree(start, ignore_errors=True)
                compress(described.teacher, described.task, described.source, methods, start, described.max_length)
            starts[name] = str(start)
            configs[name], params = load_hf(start)
            _write(folder / name, configs[name], params, tokenizer)
        say("measuring the candidates, untrained: int8, in ONNX Runtime, one text at a time")
        measured = timed(starts)
    candidates = []
    for name, (ms, mb) in measured.items():
        seconds = 0.0 if name == TEACHER else BACKWARD * described.batch_size * forward_flops(configs[name], tokens)
        is_copy = copies("auto", starts[name], config)
        candidates.append(Candidate(name, starts[name], ms, mb, seconds / rate / 1000, is_copy))
    candidates.sort(key=lambda candidate: candidate.milliseconds)
    if not any(map(described.aim.allows, candidates)):
        raise InputError(_out_of_reach(described.aim, candidates))
    plan = dataclasses.replace(described, candidates=tuple(candidates), steps=plans.STEPS)
    if plan.budget is None:
        return plan
    return dataclasses.replace(plan, steps=plans.steps_within(plan, plan.budget))


def _largest_share(plan: Plan, teacher_params: Params, teacher_ms: Callable[[], float]) -> float:
    """The largest share of the teacher's multiply-adds with which a pruned teacher may meet the aim; 0 if none can.

    A pruned model takes at least its share of the teacher's time, and keeps its word table. Pruning needs labels.
    """
    aim = plan.aim
    has_labels = plan.source.has_labelled and get_task(plan.task).kind.labels_each_row
    if not has_labels or (aim.max_mb is not None and _word_megabytes(teacher_params) > aim.max_mb):
        return 0.0
    return 1.0 if aim.max_ms is None else aim.max_ms / teacher_ms()


def _word_megabytes(params: Params) -> float:
    """The size of the word table in int8, in MB. A pruned model keeps it."""
    table = params["encoder"]["embeddings"]["word_embeddings"]
    return sum(leaf.size for leaf in jax.tree.leaves(table)) / 1e6


def _outcome(plan: Plan, candidate: Candidate, rung: int, out: Path, say: Callable[[str], None]) -> Outcome | None:
    """A candidate's score after a rung, in int8; None: it diverged, or int8 is too coarse for it."""
    folder = out / "candidates" / candidate.name

    def trained() -> dict[str, Any]:
        """The numbers to save, or the reason why the candidate is dropped, for a resumed search."""
        model, steps = plan.teacher, 0
        if candidate.is_trained:
            experiment = plan.experiment(candidate, rung)
            steps = sum(stage.max_steps or 0 for stage in experiment.stages)
            directory = _run(out, candidate, rung)
            try:
                model = str(run(experiment, directory, resume=is_begun(directory)).directory)
            except Diverged as error:
                return {"ended": str(error)}
        with _folder(folder) as temporary:
            try:
                export_model(model, temporary / "export", (FORM,))
            except InputError as error:  # int8 is too coarse for it
                return {"ended": str(error)}
            score = _score(plan, str(temporary / "export"))
            shutil.rmtree(folder / "export", ignore_errors=True)
            (temporary / "export").rename(folder / "export")
        return {"score": score, "steps": steps, "model": model}

    folder.mkdir(parents=True, exist_ok=True)
    numbers = _kept(folder / _file(candidate, rung), trained)
    # after its score is saved: a search that stops in between would train it again
    shutil.rmtree(_run(out, candidate, rung) / "checkpoints", ignore_errors=True)
    if "ended" in numbers:
        say(f"note: {candidate.name} ends here: {numbers['ended']}")
        return None
    return Outcome(candidate, numbers["score"], numbers["steps"], rung)


def _deployed(plan: Plan, out: Path, chosen: Outcome) -> Path:
    """Export the pick and return the directory. The student and its experiment are written beside it."""
    folder = out / "candidates" / chosen.candidate.name
    numbers = json.loads((folder / _file(chosen.candidate, chosen.rung)).read_text("utf-8"))
    for source, target in ((Path(numbers["model"]), "student"), (folder / "export", "export")):
        shutil.rmtree(out / target, ignore_errors=True)
        if source.is_dir():  # a teacher may be a hub id
            shutil.copytree(source, out / target)
    if chosen.steps:
        experiment = plan.experiment(chosen.candidate, chosen.rung)
        names = ", ".join(sorted(_classes(experiment)))
        pick_file = PICK.format(name=chosen.candidate.name, names=names, experiment=repr(experiment))
        (out / "pick.py").write_text(pick_file, "utf-8")
    return out / "export"


def _write(directory: Path, config: BertConfig, params: Params, tokenizer: Any) -> None:
    """Export a model for timing, without a comparison of its outputs."""
    save_description(directory, config, params, tokenizer)
    file = directory / FORMATS[FORM].path
    file.parent.mkdir()
    FORMATS[FORM].write(config, params, WEIGHT_BITS, file)


def _run(out: Path, candidate: Candidate, rung: int) -> Path:
    """The directory of a candidate's training."""
    return out / "candidates" / candidate.name / f"rung-{rung + 1}"


def _classes(settings: Any) -> set[str]:
    """The names of the classes that a Python file must import to write these settings."""
    if dataclasses.is_dataclass(settings):
        parts = [getattr(settings, field.name) for field in dataclasses.fields(settings)]
        return {type(settings).__name__}.union(*map(_classes, parts))
    return set[str]().union(*map(_classes, settings)) if isinstance(settings, tuple) else set()


def _file(candidate: Candidate, rung: int) -> str:
    """The file of an outcome. The teacher is not trained, so it has one file for all rungs."""
    return f"rung-{rung + 1}.json" if candidate.is_trained else "outcome.json"


def _kept(path: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The saved result of a computation in a search; if there is none, compute and save it."""
    if not path.is_file():
        numbers = compute()
        temporary = path.with_suffix(".part")
        temporary.write_text(json.dumps(numbers) + "\n", "utf-8")
        temporary.replace(path)
    return json.loads(path.read_text("utf-8"))


@contextmanager
def _folder(out: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=out, prefix=".") as name:
        yield Path(name)


def _score(plan: Plan, model: str) -> float:
    source = dataclasses.replace(plan.source, unlabelled=(), recombine_to=None)  # they do not belong to the dev set
    scores = evaluate(model, plan.task, source, "dev", max_length=plan.max_length)
    return scores[get_task(plan.task).selection]


def _out_of_reach(aim: Aim, candidates: Sequence[Candidate]) -> str:
    """The error that no candidate is within the limits. It says how close the nearest one is."""
    if aim.max_ms is not None:
        nearest, advice = min(candidates, key=lambda candidate: candidate.milliseconds), ""
    else:
        nearest = min(candidates, key=lambda candidate: candidate.megabytes)
        advice = "; most of it is the word table: cut the teacher's first, with tinybert compress --vocabulary data"
    size = f"{nearest.milliseconds:.3g} ms and {nearest.megabytes:.1f} MB"
    return f"no candidate is within the aim ({aim}): the nearest is {nearest.name} with {size}{advice}"
