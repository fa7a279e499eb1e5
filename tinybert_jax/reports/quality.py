"""The sections of a report about what the models score, cost and get wrong."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from tinybert_jax.reports import charts
from tinybert_jax.reports.calibration import BINS, calibration_error, confidence_bins
from tinybert_jax.reports.document import Block, Fold, Grid, Items, Picture, Pictures, Section, Text, shortened
from tinybert_jax.reports.models import TEACHER, TIMED_ROWS, TOGETHER, Model
from tinybert_jax.tasks.classes import CONFUSION
from tinybert_jax.tasks.split import Judged, Reading, Table

SHOWN = 12  # rows that one model has right and another wrong
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MOST_LINES = 8  # models in one drawing of calibration
DASH = "-"


def letter(number: int) -> str:
    """A model's letter in the drawings.

    >>> letter(1), letter(27)
    ('B', 'B1')
    """
    round_, place = divmod(number, len(LETTERS))
    return LETTERS[place] + (str(round_) if round_ else "")


def summary(models: Sequence[Model], metric: str, teachers: Mapping[str, Model]) -> tuple[Block, ...]:
    """What each model kept of its teacher, in a sentence each.

    Args:
        models: those of the page.
        metric: the score that is compared.
        teachers: what each model is held against, by the model's path.
    """
    scored = [model for model in models if metric in model.scores]
    lines = []
    for model in scored:
        line = f"{model.name} ({model.role}): {metric} {model.scores[metric]:.4f} on the dev set"
        teacher = teachers.get(model.path)
        if teacher is not None and metric in teacher.scores:
            line = "; ".join(filter(None, [line, ", ".join(_against(model, teacher, metric))]))
        lines.append(line + ".")
    lines += [f"{model.name} ({model.role}) is left out: {model.note.rstrip('.')}." for model in models if model.note]
    return (Items(tuple(lines)),) if lines else ()


def _against(model: Model, teacher: Model, metric: str) -> list[str]:
    """A model's shares of its teacher."""
    parts = []
    if teacher.scores[metric] > 0 and model.scores[metric] > 0:
        parts.append(f"{model.scores[metric] / teacher.scores[metric]:.1%} of the teacher's {metric}")
    if model.bytes and teacher.bytes:
        parts.append(f"{model.bytes / teacher.bytes:.1%} of its bytes")
    if model.macs and teacher.macs:
        parts.append(f"{model.macs / teacher.macs:.1%} of its multiply-adds")
    if model.milliseconds and teacher.milliseconds:
        parts.append(f"{teacher.milliseconds[0] / model.milliseconds[0]:.1f} times as fast on a text alone")
    return parts


def quality(models: Sequence[Model], metric: str) -> Section:
    """Scores against size and time."""
    names = list(dict.fromkeys(name for model in models for name in model.scores))
    timed = any(model.milliseconds for model in models)
    header = ["model", "role", *names, "parameters", "MB on disk", "MB in int8", "multiply-adds"]
    header += ["ms a text", f"ms, {TOGETHER} together"] if timed else []
    rows = []
    for number, model in enumerate(models):
        row = [f"{letter(number)} {model.name}", model.role]
        row += [f"{model.scores[name]:.4f}" if name in model.scores else DASH for name in names]
        row += [
            DASH if model.parameters is None else f"{model.parameters / 1e6:.2f} M",
            *(DASH if size is None else f"{size / 1e6:.2f}" for size in (model.bytes, model.int8_bytes)),
            DASH if model.macs is None else f"{model.macs / 1e6:,.1f} M",
        ]
        row += [f"{ms:.3g}" for ms in model.milliseconds] or [DASH, DASH] if timed else []
        rows.append(row)
    blocks: list[Block] = [Grid("Scores on the dev set, size and speed", header, rows)]
    blocks += _drawings(models, metric)
    members = _members(models, metric)
    blocks += [members] if members else []
    says = (
        "MB on disk are those of the weights. MB in int8 are what the weights take in 8 bits. Multiply-adds are those"
        " of the layers, for a dev row of mean length."
    )
    if timed:
        says += (
            f" Times are medians on this machine, over the first {TIMED_ROWS} dev rows at their own lengths, after a"
            " warm-up, with the models in turn; other work on the machine shows in them."
        )
    return Section("Quality, size and speed", (*blocks, Text(says)))


def _drawings(models: Sequence[Model], metric: str) -> list[Block]:
    """The score over what a model costs, for each cost that two models or more have."""
    costs = (
        ("milliseconds a text, alone", [model.milliseconds[0] if model.milliseconds else None for model in models]),
        ("MB on disk", [None if model.bytes is None else model.bytes / 1e6 for model in models]),
        ("million multiply-adds a text", [None if model.macs is None else model.macs / 1e6 for model in models]),
    )
    pictures = []
    for name, values in costs:
        points = [
            (number, cost, models[number].scores[metric])
            for number, cost in enumerate(values)
            if cost is not None and metric in models[number].scores
        ]
        if len(points) < 2:
            continue
        series = {number: charts.Series(letter(number), [(cost, score)]) for number, cost, score in points}
        alt = f"{metric} over {name}: " + "; ".join(
            f"{letter(number)} {models[number].name}: {score:.4f} at {cost:.4g}" for number, cost, score in points
        )
        svg = charts.marks(series, name, metric, alt, logarithmic=min(cost for _, cost, _ in points) > 0)
        legend = tuple((number, f"{letter(number)} {models[number].name}") for number, _, _ in points)
        pictures.append(Picture(f"{metric} over {name}", svg, alt, legend, dots=True))
    return [Pictures(tuple(pictures))] if pictures else []


def _members(models: Sequence[Model], metric: str) -> Items | None:
    """Mean and spread of each population."""
    populations: dict[str, list[float]] = {}
    for model in models:
        name, is_member, _ = model.name.rpartition(" member ")
        if is_member and metric in model.scores:
            populations.setdefault(name, []).append(model.scores[metric])
    lines = [
        f"{name}, {len(values)} members: {metric} {statistics.mean(values):.4f}, standard deviation"
        f" {statistics.stdev(values):.4f}."
        for name, values in populations.items()
        if len(values) > 1
    ]
    return Items(tuple(lines)) if lines else None


def classes(models: Sequence[Model]) -> Section | None:
    """What each model does with each class; None where no model has classes."""
    shown = [model for model in models if model.tables]
    if not shown:
        return None
    open_one = next((model for model in shown if model.role != TEACHER), shown[0])
    folds = [
        Fold(
            f"{model.name} ({model.role})",
            tuple(_class_grid(model, table) for table in model.tables),
            is_open=model is open_one,
        )
        for model in shown
    ]
    return Section("Classes", tuple(folds))


def _class_grid(model: Model, table: Table) -> Grid:
    header, rows = table
    if header[0] != CONFUSION:
        return Grid(f"Scores of each class, {model.name}", header, rows)
    counts = [[int(cell) for cell in row[1:]] for row in rows]
    shades = [[count / max(1, sum(row)) for count in row] for row in counts]
    return Grid(f"How often each class (a line) is taken for each (a column), {model.name}", header, rows, shades)


def calibration(models: Sequence[Model]) -> Section | None:
    """Whether each model is as sure as it is right; None where no model gives probabilities."""
    sure = [(model, model.reading) for model in models if model.reading is not None and model.reading.unit]
    if not sure:
        return None
    unit = sure[0][1].unit
    rows = []
    for model, reading in sure:
        error = calibration_error(reading.confidence, reading.right)
        numbers = reading.confidence.mean(), reading.right.mean()
        rows.append([model.name, model.role, f"{error:.4f}", *(f"{x:.4f}" for x in numbers), str(len(reading.right))])
    header = ["model", "role", "ECE", "mean confidence", "share right", unit]
    pictures = []
    for start in range(0, len(sure), MOST_LINES):
        pictures.append(_reliability(sure[start : start + MOST_LINES], unit))
    says = (
        f"ECE is the expected calibration error over {BINS} bins of equal width (Guo et al. 2017): the mean distance"
        " between how sure the model is and how often it is right. Below the diagonal it is too sure of itself."
    )
    blocks = (Grid("Expected calibration error on the dev set", header, rows), Pictures(tuple(pictures)), Text(says))
    return Section("Calibration", blocks)


def _reliability(sure: Sequence[tuple[Model, Reading]], unit: str) -> Picture:
    series, rows, told = [], [], []
    for model, reading in sure:
        bins = confidence_bins(reading.confidence, reading.right)
        series.append(charts.Series(model.name, [(part.confidence, part.accuracy) for part in bins]))
        rows += [[model.name, f"{part.confidence:.3f}", f"{part.accuracy:.3f}", str(part.decisions)] for part in bins]
        told.append(f"{model.name} {calibration_error(reading.confidence, reading.right):.4f}")
    alt = f"Share of {unit} that are right over the model's confidence. ECE: {'; '.join(told)}."
    svg = charts.reliability(series, "confidence", "share right", alt)
    numbers = Grid("Bins of confidence", ["model", "mean confidence", "share right", unit], rows)
    legend = tuple((number, model.name) for number, (model, _) in enumerate(sure))
    return Picture("Reliability", svg, alt, legend, numbers=numbers)


def lost_and_won(models: Sequence[Model], teachers: dict[str, Model]) -> Section | None:
    """The rows that a teacher has right and its student wrong, and the other way round.

    `teachers` are those of the models, by their paths.
    """
    blocks: list[Block] = []
    for model in models:
        teacher = teachers.get(model.path)
        if teacher is None or teacher is model or model.reading is None or teacher.reading is None:
            continue
        pairs = [*zip(model.reading.rows, teacher.reading.rows, strict=True)]
        lost = [(student, taught) for student, taught in pairs if student.score < taught.score]
        won = [(student, taught) for student, taught in pairs if student.score > taught.score]
        better = "has right, or nearer," if not model.reading.unit else "has right"
        parts = (
            (f"{teacher.name} {better} and {model.name} has not: {len(lost)} of {len(pairs)} dev rows", lost, True),
            (f"{model.name} {better} and {teacher.name} has not: {len(won)} of {len(pairs)} dev rows", won, False),
        )
        for title, rows, is_open in parts:
            is_first = not blocks
            blocks.append(Fold(title, _rows(model, teacher, rows), is_open=is_open and is_first))
    return Section("Rows lost and won", tuple(blocks)) if blocks else None


def _rows(model: Model, teacher: Model, rows: Sequence[tuple[Judged, Judged]]) -> tuple[Block, ...]:
    if not rows:
        return (Text("None."),)

    def weight(pair: tuple[Judged, Judged]) -> tuple[float, float]:
        """The widest difference first, and among equal ones the surest mistake."""
        wrong = min(pair, key=lambda judged: judged.score)
        return -abs(pair[0].score - pair[1].score), -(wrong.probability or 0.0)

    shown = sorted(rows, key=weight)[:SHOWN]
    cells = [
        [shortened(student.text), shortened(student.label, 80), _said(student), _said(taught)]
        for student, taught in shown
    ]
    header = ["text", "label", f"{model.name} says", f"{teacher.name} says"]
    most = f"The {len(shown)} clearest mistakes of {len(rows)}" if len(shown) < len(rows) else "All of them"
    return (Grid(f"{most}, {model.name} and {teacher.name}", header, cells, prose=True),)


def _said(judged: Judged) -> str:
    said = shortened(judged.said, 80)
    return said if judged.probability is None else f"{said} ({judged.probability:.2f})"
