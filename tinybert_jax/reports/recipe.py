"""The sections of a report about the making of the models: layers, training, compression, settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tinybert_jax.reports import charts
from tinybert_jax.reports.agreement import Agreement
from tinybert_jax.reports.document import Block, Fold, Grid, Heading, Picture, Pictures, Section, Text
from tinybert_jax.reports.runs import Run
from tinybert_jax.reports.tables import Table

FIRST = ["dev", "loss"]  # groups of names in a log that are drawn before the terms of the loss
# names in a log that are not terms of the loss
BOOKKEEPING = {"stage", "step", "gradient_norm", "learning_rate", "parameter_norm", "real_tokens"}


def layers(compared: Sequence[tuple[str, str, Agreement | str]]) -> Section | None:
    """The similarity of students' and teachers' layers, or the reason why it is unknown."""
    blocks: list[Block] = []
    for student, teacher, result in compared:
        if isinstance(result, str):
            blocks.append(Text(f"{student} and {teacher} are not compared layer by layer: {result}."))
            continue
        parts = _agreement(student, teacher, result)
        blocks.append(Fold(f"{student} beside {teacher}", parts, is_open=not blocks))
    says = (
        "This section helps to explain lost rows. If a student's starred cells are low, it did not learn the states"
        " of those teacher layers. Hidden states are compared by linear CKA (Kornblith et al. 2019, without bias). It"
        " needs no equal widths: 1 means that one is a rotation and scaling of the other, about 0 that they have"
        " nothing in common. Attention is compared by the cosine of where each token looks, on the mean over heads."
    )
    return Section("Layers", (Text(says), *blocks)) if blocks else None


def _agreement(student: str, teacher: str, result: Agreement) -> tuple[Block, ...]:
    mapped = ", ".join(f"{m + 1} with {g}" for m, g in enumerate(result.layer_map))
    says = (
        f"Over {result.tokens} tokens of dev rows. Stars mark what the layer map pairs, layers of the student with"
        f" layers of the teacher: {mapped}."
    )
    stars = {(m + 1, g) for m, g in enumerate(result.layer_map)} | {(0, 0)}
    sides = f"down {student}, across {teacher}"
    hidden = _matrix(f"Hidden states (CKA); {sides}", ["embeddings"], result.hidden, stars, 0)
    attention = _matrix(f"Attention (cosine); {sides}", [], result.attention, stars, 1)
    return Text(says), hidden, attention


def _matrix(caption: str, first: list[str], values: Any, stars: set[tuple[int, int]], offset: int) -> Grid:
    """A table with a line for each student layer and a column for each teacher layer."""

    def named(count: int) -> list[str]:
        return [*first, *(f"layer {i}" for i in range(1, count - len(first) + 1))]

    rows, shades = [], []
    for m, (name, line) in enumerate(zip(named(len(values)), values, strict=True)):
        cells = [f"{value:.2f}{'*' if (m + offset, g + offset) in stars else ''}" for g, value in enumerate(line)]
        rows.append([name, *cells])
        shades.append([min(max(float(value), 0.0), 1.0) for value in line])
    return Grid(caption, ["after", *named(values.shape[1])], rows, shades)


def training(runs: Sequence[Run]) -> Section | None:
    """The terms of the loss and the dev scores over the steps of each stage."""
    blocks: list[Block] = []
    for run in runs:
        stages = dict.fromkeys(line["stage"] for line in run.metrics)
        parts = [part for stage in stages for part in _stage(run, stage)]
        if parts:
            title = f"{run.name}: {_spent(run)}" if run.speed else run.name
            blocks.append(Fold(title, tuple(parts), is_open=not blocks))
    says = (
        "The loss is the sum of its terms, each times its weight. Terms are drawn without their weights, and one of"
        " weight 0 is left out. In attention/1 and the like, the number is the student's layer. A stage with dev"
        " scores keeps the state of the best one, not the last. FLOPs are counted, not measured: those of the student"
        " forward and backward, and of the teacher forward where it ran in the step; padding is included. Members of a"
        " population are counted together."
    )
    return Section("Training", (Text(says), *blocks)) if blocks else None


def _spent(run: Run) -> str:
    """The time, tokens and operations of the training, without evaluations."""
    names = ("seconds", "tokens", "flops")
    seconds, tokens, flops = (sum(float(line.get(name, 0)) for line in run.speed) for name in names)
    duration = f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 3600:.2f} hours"
    computed = f" and {flops:.2g} FLOPs" if all("flops" in line for line in run.speed) else ""  # older logs lack them
    return f"trained for {duration} on {tokens:,.0f} tokens{computed}, evaluations not counted"


def _stage(run: Run, stage: str) -> list[Block]:
    terms: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for line in run.metrics:
        if line["stage"] != stage:
            continue
        for name, value in line.items():
            if name not in BOOKKEEPING and isinstance(value, int | float):
                group = terms.setdefault(name.partition("/")[0], {})
                group.setdefault(name, []).append((float(line["step"]), float(value)))
    loss = terms.get("loss", {}).get("loss")
    unread = _without_weight(run, stage)
    shown = {
        group: parts
        for group, parts in terms.items()
        if group in FIRST or (loss not in parts.values() and group not in unread)
    }
    order = sorted(shown, key=lambda group: FIRST.index(group) if group in FIRST else len(FIRST))
    pictures = tuple(_curve(stage, group, shown[group]) for group in order)
    return [Heading(f"Stage {stage.replace('-', ': ', 1)}"), Pictures(pictures)] if pictures else []


def _without_weight(run: Run, stage: str) -> set[str]:
    """The terms of a stage's loss whose weight is 0 in all its steps."""
    objective = run.settings["stages"][int(stage.partition("-")[0]) - 1]["objective"]
    weights = {name.removesuffix("_weight"): x for name, x in objective.items() if name.endswith("_weight")}
    return {name for name, x in weights.items() if (x["start"] == x["end"] == 0 if isinstance(x, dict) else x == 0)}


def _curve(stage: str, group: str, terms: Mapping[str, Sequence[tuple[float, float]]]) -> Picture:
    series = [charts.Series(name, points) for name, points in terms.items()]
    told = "; ".join(f"{name} from {points[0][1]:.4g} to {points[-1][1]:.4g}" for name, points in terms.items())
    title = {"dev": "dev scores", "loss": "loss, all terms"}.get(group, group)
    if len(terms) == 1 and group == "dev":
        title = next(iter(terms)).replace("/", " ")
    alt = f"Over the steps: {told}."
    rows = []
    for name, points in terms.items():
        values = [value for _, value in points]
        rows.append([name, *(f"{x:.5g}" for x in (values[0], values[-1], min(values), max(values)))])
    numbers = Grid(f"{title}, stage {stage}", ["term", "first", "last", "least", "largest"], rows)
    legend = tuple(enumerate(terms)) if len(terms) > 1 else ()
    svg = charts.lines(series, "step", title, alt, dots=group == "dev")
    return Picture(title, svg, alt, legend, numbers=numbers)


def compression(chains: Mapping[str, Table]) -> Section | None:
    """The tables of the models after each method and stage, by the models' names."""
    grids = tuple(
        Grid(f"The model after each method and stage, {name}", header, rows) for name, (header, rows) in chains.items()
    )
    return Section("Compression", grids) if grids else None


def settings(runs: Sequence[Run], places: Sequence[tuple[str, str, str]]) -> Section:
    """The places of the models, with name and role, and the whole record of each run."""
    folds: list[Block] = [Grid("Models", ["model", "role", "directory or file"], places, prose=True)]
    for run in runs:
        facts = {key: value for key, value in run.facts.items() if key != "fingerprints"}
        grids = [_flat_grid("Settings", run, run.settings), _flat_grid("Versions and devices", run, facts)]
        prints = run.facts.get("fingerprints")
        grids += [_flat_grid("Fingerprints of rows and models", run, prints)] if isinstance(prints, dict) else []
        folds.append(Fold(run.name, tuple(grids)))
    return Section("Settings, seeds and versions", tuple(folds))


def _flat_grid(title: str, run: Run, tree: Any) -> Grid:
    rows = [[name, value] for name, value in _leaves(tree, "")]
    return Grid(f"{title}, {run.name}", ["name", "value"], rows, prose=True)


def _leaves(tree: Any, prefix: str) -> list[tuple[str, str]]:
    """The leaves of nested settings, by their paths, including empty lists and dictionaries."""
    if isinstance(tree, dict | list) and tree:
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return [leaf for key, value in items for leaf in _leaves(value, f"{prefix}.{key}" if prefix else str(key))]
    return [(prefix, tree if isinstance(tree, str) else json.dumps(tree, ensure_ascii=False))]
