"""The sections of a report about the models' scores, costs and errors."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from tinybert_jax.reports import charts
from tinybert_jax.reports.calibration import BINS, calibration_error, confidence_bins
from tinybert_jax.reports.document import Block, Fold, Grid, Items, Picture, Pictures, Section, Text, shortened
from tinybert_jax.reports.models import BASELINE, EXPORTED, TIMED_ALONE, TIMED_ROWS, TOGETHER, Model, machine
from tinybert_jax.tasks.classes import CONFUSION, F1
from tinybert_jax.tasks.metrics import share_of
from tinybert_jax.tasks.split import Judged, Reading, Table

SHOWN = 12  # number of shown rows that one model has right and another wrong
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
DASH = "-"
AGAINST = ("of the teacher's", "smaller", "faster", "rows lost", "rows won", "p")  # model and teacher


def letter(number: int) -> str:
    """A model's letter in the drawings.

    >>> letter(1), letter(27)
    ('B', 'B1')
    """
    round_, place = divmod(number, len(LETTERS))
    return LETTERS[place] + (str(round_) if round_ else "")


def summary(models: Sequence[Model], metric: str, teachers: Mapping[str, Model]) -> tuple[Block, ...]:
    """The comparison of each model with its teacher: a table, and how to read it.

    Args:
        models: the models of the page.
        metric: the score that is compared.
        teachers: each model's teacher, by the model's path.
    """
    letters = {model.path: letter(number) for number, model in enumerate(models)}
    several = len({teacher.path for teacher in teachers.values()}) > 1
    rows = []
    for model in models:
        if metric not in model.scores:
            continue
        row = [f"{letters[model.path]} {model.title}", f"{model.scores[metric]:.4f}"]
        teacher = teachers.get(model.path)
        if teacher is None or metric not in teacher.scores:
            row += [DASH] * (len(AGAINST) + several)
        else:
            row += [*_against(model, teacher, metric), *[letters[teacher.path]] * several]
        rows.append(row)
    header = ["model", metric, *AGAINST, *["teacher"] * several]
    empty = {i for i in range(2, len(header)) if all(row[i] == DASH for row in rows)}
    header, *rows = [[cell for i, cell in enumerate(row) if i not in empty] for row in (header, *rows)]
    blocks: list[Block] = []
    if rows:
        blocks.append(Grid("Each model beside its teacher, on the same dev rows", header, rows))
        blocks.append(Items(tuple(_how_to_read(models, teachers))))
    lines = [f"{model.title} is left out: {model.note.rstrip('.')}." for model in models if model.note]
    return (*blocks, *([Items(tuple(lines))] if lines else []))


def _against(model: Model, teacher: Model, metric: str) -> list[str]:
    """The cells of AGAINST for a model."""
    share, size, speed = share_of(model.scores[metric], teacher.scores[metric]), DASH, DASH
    if model.bytes and teacher.bytes:
        size = f"{teacher.bytes / model.bytes:.1f}x"
    if model.milliseconds and teacher.milliseconds:
        speed = f"{teacher.milliseconds[0] / model.milliseconds[0]:.1f}x"
    if model.reading is None or teacher.reading is None:
        return [share, size, speed, DASH, DASH, DASH]
    lost, won = (len(rows) for rows in _differing(model.reading, teacher.reading))
    return [share, size, speed, str(lost), str(won), f"{chance(lost, won):.2g}"]


def chance(lost: int, won: int) -> float:
    """The p-value of the exact sign test: the probability that `lost` and `won` rows are split at least as unevenly if
    both models are equally good. For rows that are right or wrong, this is McNemar's test.

    >>> round(chance(4, 0), 4), chance(0, 0)
    (0.125, 1.0)
    """
    from scipy.stats import binomtest

    return float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0


def _how_to_read(models: Sequence[Model], teachers: Mapping[str, Model]) -> list[str]:
    """Advice that a reader needs before a decision."""
    lines = []
    count = next((len(model.reading.rows) for model in models if model.reading is not None), 0)
    if count and teachers:
        lines.append(
            f"Rows lost, out of {count}: the teacher is right, or nearer, and the model is not. Rows won: the other"
            " way round. They are listed below: read them before you deploy."
        )
        lines.append(
            "p: how often chance alone would split the rows lost and won as unevenly if both models were equally good"
            " (sign test). If p is above 0.05, these rows do not show which model is better. They do not prove that"
            " nothing was lost."
        )
    if any(model.milliseconds for model in models):
        lines.append("Faster: on one text at a time.")
    largest = next((model.largest for model in models if model.largest is not None), None)
    if largest is not None:
        lines.append(f"A model that always answers the largest class is right on {largest:.1%} of these rows.")
    lines.append(
        "Where the dev rows also chose a run's best state, its score is a little too good: before you deploy a model,"
        " run tinybert evaluate on labelled rows that no run has seen."
    )
    return lines


def quality(models: Sequence[Model], metric: str) -> Section:
    """Scores, size and time of all models: first the most important columns, then those that explain them.

    `metric` is "" for models that are not scored.
    """
    names = list(dict.fromkeys(name for model in models for name in model.scores))
    timed = any(model.milliseconds for model in models)
    header = [
        "model",
        *names,
        "MB on disk",
        *(["ms a text, alone", f"ms a text, {TOGETHER} together"] if timed else []),
    ]
    header += ["parameters", "multiply-adds", "MB as int8"]
    rows = []
    for number, model in enumerate(models):
        row = [f"{letter(number)} {model.title}"]
        row += [f"{model.scores[name]:.4f}" if name in model.scores else DASH for name in names]
        row += [_megabytes(model.bytes)]
        row += [f"{ms:#.3g}".rstrip(".") for ms in model.milliseconds] or [DASH, DASH] if timed else []
        row += [
            DASH if model.parameters is None else f"{model.parameters / 1e6:.2f} M",
            DASH if model.macs is None else f"{model.macs / 1e6:,.1f} M",
            _megabytes(model.int8_bytes),
        ]
        rows.append(row)
    caption = "Scores on the dev set, size and speed" if metric else "Size"
    blocks: list[Block] = [Grid(caption, header, rows)]
    blocks += _drawings(models, metric)
    members = _members(models, metric)
    blocks += [members] if members else []
    title = "Quality, size and speed" if metric else "Size"
    return Section(title, (*blocks, Items(tuple(_columns(models, timed, metric)))))


def _columns(models: Sequence[Model], timed: bool, metric: str) -> list[str]:
    """A description of the columns."""
    lines = ["MB on disk: the weights, or the exported program. MB as int8: computed, the same weights in 8 bits."]
    text = "a dev row of mean length" if metric else "a text as long as --max-length"
    lines.append(f"Multiply-adds: those of the layers, for {text}.")
    if timed:
        lines.append(
            f"ms a text: medians on {machine()}, after a warm-up, with the models in turn. Alone: one text at a time,"
            f" the first {TIMED_ALONE} dev rows. {TOGETHER} together: the time of a batch of {TOGETHER}, divided by"
            f" {TOGETHER}, for the first {TIMED_ROWS} dev rows. Rows are padded as in tinybert predict. Other work on"
            " the machine makes the times longer."
        )
    if any(model.role == EXPORTED for model in models):
        lines.append(
            "For exported models, parameters and multiply-adds are unknown. They run in ONNX Runtime or as StableHLO,"
            " the others in JAX, so their times differ for that reason too."
        )
    if any(model.role == BASELINE for model in models):
        lines.append(f"{BASELINE.capitalize()}: trained without the teacher, to show what distillation adds.")
    return lines


def _megabytes(size: int | None) -> str:
    return DASH if size is None else f"{size / 1e6:.2f}"


def _drawings(models: Sequence[Model], metric: str) -> list[Block]:
    """Drawings of the score over each cost that is known for at least two models."""
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
        alt = "; ".join(
            f"{letter(number)} {models[number].name}: {score:.4f} at {cost:.4g}" for number, cost, score in points
        )
        logarithmic = min(cost for _, cost, _ in points) > 0
        label = f"{name} (log scale)" if logarithmic else name
        svg = charts.marks(series, label, metric, f"{metric} over {name}: {alt}", logarithmic)
        legend = tuple((number, f"{letter(number)} {models[number].name}") for number, _, _ in points)
        pictures.append(Picture(f"{metric} over {name}", svg, alt, legend, dots=True))
    return [Pictures(tuple(pictures))] if pictures else []


def _members(models: Sequence[Model], metric: str) -> Items | None:
    """Mean and standard deviation of each population."""
    populations: dict[str, list[float]] = {}
    for model in models:
        if model.population and metric in model.scores:
            populations.setdefault(model.population, []).append(model.scores[metric])
    lines = [
        f"{name}, {len(values)} members: {metric} {statistics.mean(values):.4f}, standard deviation"
        f" {statistics.stdev(values):.4f}."
        for name, values in populations.items()
        if len(values) > 1
    ]
    return Items(tuple(lines)) if lines else None


def classes(models: Sequence[Model]) -> Section | None:
    """The results of each model for each class; None if no model has classes."""
    shown = [model for model in models if model.tables]
    if not shown:
        return None
    folds = [Fold(model.title, tuple(_class_grid(model, table) for table in model.tables)) for model in shown]
    return Section("Classes", (_by_class(shown), *folds))


def _by_class(shown: Sequence[Model]) -> Grid:
    """F1 of each class, with a column for each model."""
    header, rows = shown[0].tables[0]
    scores = [
        {name: cells[of_model.index(F1) - 1] for name, *cells in of_class}
        for of_model, of_class in (model.tables[0] for model in shown)
    ]
    compared = [[name, count, *(of_model.get(name, DASH) for of_model in scores)] for name, count, *_ in rows]
    return Grid(f"{F1} of each {header[0]}", [*header[:2], *(model.title for model in shown)], compared)


def _class_grid(model: Model, table: Table) -> Grid:
    header, rows = table
    if header[0] != CONFUSION:
        return Grid(f"Scores of each {header[0]}, {model.name}", header, rows)
    counts = [[int(cell) for cell in row[1:]] for row in rows]
    shades = [[count / max(1, sum(row)) for count in row] for row in counts]
    return Grid(f"Confusion matrix, {model.name}: true down, predicted across", header, rows, shades)


def calibration(models: Sequence[Model]) -> Section | None:
    """The calibration of each model; None if no model gives probabilities."""
    sure = [(model, model.reading) for model in models if model.reading is not None and model.reading.unit]
    if not sure:
        return None
    unit = sure[0][1].unit
    rows = []
    for model, reading in sure:
        confidence, right = float(reading.confidence.mean()), float(reading.right.mean())
        error = calibration_error(reading.confidence, reading.right)
        cells = [f"{confidence:.2%}", f"{right:.2%}", f"{100 * (confidence - right):+.2f}", f"{error:.4f}"]
        rows.append([model.title, *cells])
    header = ["model", "mean confidence", f"{unit} right", "too sure by, points", "ECE"]
    drawings = tuple(_reliability(model, reading) for model, reading in sure)
    says = (
        "A small ECE matters if you act on the confidence, for example if people read the unsure texts. ECE is the"
        f" expected calibration error over {BINS} bins of equal width (Guo et al. 2017): the mean distance between how"
        " sure the model is and how often it is right; 0 is best. In the drawings a dot is a bin, larger if it holds"
        " more decisions. Below the diagonal the model is too sure of itself."
    )
    grid = Grid(f"How sure each model is of {len(sure[0][1].right)} {unit}, and how often it is right", header, rows)
    return Section("Calibration", (grid, Text(says), Fold("Reliability of each model", (Pictures(drawings),), True)))


def _reliability(model: Model, reading: Reading) -> Picture:
    bins = confidence_bins(reading.confidence, reading.right)
    rows = [[f"{part.confidence:.3f}", f"{part.accuracy:.3f}", str(part.decisions)] for part in bins]
    error = calibration_error(reading.confidence, reading.right)
    alt = f"Share of {reading.unit} that are right over the confidence, in {len(bins)} bins; ECE {error:.4f}."
    points = [(part.confidence, part.accuracy) for part in bins]
    svg = charts.reliability(points, [part.decisions for part in bins], "confidence", "share right", alt)
    numbers = Grid(f"Bins of confidence, {model.name}", ["mean confidence", "share right", reading.unit], rows)
    return Picture(model.title, svg, alt, numbers=numbers)


def lost_and_won(models: Sequence[Model], teachers: dict[str, Model]) -> Section | None:
    """The rows that a teacher has right and its student wrong, and the other way round.

    `teachers` are the models' teachers, by the models' paths. A model with the same predictions as one before it gets
    only a line.
    """
    blocks: list[Block] = []
    told: dict[tuple[str, ...], Model] = {}
    for model in models:
        teacher = teachers.get(model.path)
        if teacher is None or teacher is model or model.reading is None or teacher.reading is None:
            continue
        first = told.setdefault((teacher.path, *(judged.said for judged in model.reading.rows)), model)
        if first is not model:
            blocks.append(Text(f"{model.name} says of every dev row what {first.name} says: see there."))
            continue
        lost, won = _differing(model.reading, teacher.reading)
        right, wrong = ("has right", "has wrong") if model.reading.unit else ("is nearer on", "is less near on")
        count = len(model.reading.rows)
        parts = (
            (f"Lost by {model.name}: {len(lost)} of {count} dev rows, which {teacher.name} {right}", lost, True),
            (f"Won by {model.name}: {len(won)} of {count} dev rows, which {teacher.name} {wrong}", won, False),
        )
        for title, rows, is_open in parts:
            is_first = not blocks
            shown = Fold(title, (_rows(model, teacher, rows),), is_open=is_open and is_first)
            blocks.append(shown if rows else Text(f"{title}."))
    says = Text("In brackets: how sure the model is of what it says.")
    return Section("Rows lost and won", (says, *blocks)) if blocks else None


def _differing(model: Reading, teacher: Reading) -> tuple[list[tuple[Judged, Judged]], list[tuple[Judged, Judged]]]:
    """The rows that the model lost against its teacher, and those that it won: each as judged for both."""
    pairs = [*zip(model.rows, teacher.rows, strict=True)]
    lost = [(student, taught) for student, taught in pairs if student.score < taught.score]
    won = [(student, taught) for student, taught in pairs if student.score > taught.score]
    return lost, won


def _rows(model: Model, teacher: Model, rows: Sequence[tuple[Judged, Judged]]) -> Grid:
    def weight(pair: tuple[Judged, Judged]) -> tuple[float, float]:
        """The sort key: the largest difference first; among equal ones, the mistake with the highest probability."""
        wrong = min(pair, key=lambda judged: judged.score)
        return -abs(pair[0].score - pair[1].score), -(wrong.probability or 0.0)

    shown = sorted(rows, key=weight)[:SHOWN]
    cells = [
        [shortened(student.text), shortened(student.label, 80), _said(student), _said(taught)]
        for student, taught in shown
    ]
    header = ["text", "true label", f"{model.name} says", f"{teacher.name} says"]
    most = f"The {len(shown)} surest mistakes of {len(rows)}" if len(shown) < len(rows) else "All of them"
    return Grid(f"{most}, {model.name} and {teacher.name}", header, cells, prose=True)


def _said(judged: Judged) -> str:
    said = shortened(judged.said, 80)
    return said if judged.probability is None else f"{said} ({judged.probability:.2f})"
