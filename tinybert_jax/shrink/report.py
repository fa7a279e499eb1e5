"""The output of a search: its plan, its candidates, and the reason for the choice."""

from __future__ import annotations

from pathlib import Path

from tinybert_jax.reports.tables import Table
from tinybert_jax.settings.tasks import get_task
from tinybert_jax.shrink.plan import Plan
from tinybert_jax.shrink.search import Search
from tinybert_jax.tasks.metrics import share_of


def plan_table(plan: Plan) -> Table:
    """A row for each candidate, the fastest first."""
    header = ["candidate", "ms a text", "MB", "training"]
    rows = []
    for candidate in plan.candidates:
        training = f"{candidate.step_seconds:.2g} s a step" if candidate.is_trained else "none"
        if not plan.aim.allows(candidate):
            training = "beyond the aim"
        rows.append([candidate.name, f"{candidate.milliseconds:.3g}", f"{candidate.megabytes:.1f}", training])
    return header, rows


def plan_line(plan: Plan) -> str:
    """One line about the cost of the training."""
    steps = ", ".join(map(str, plan.steps))
    minutes = f"about {plan.seconds / 60:.0f} minutes, besides compilation and scoring"
    return f"rungs of {steps} steps of layers and half as many of outputs: {minutes}"


def results_table(search: Search) -> Table:
    """A row for each candidate that was tried, the fastest first."""
    header = ["candidate", "steps", get_task(search.plan.task).selection, "kept", "ms a text", "MB", "front", "pick"]
    rows = []
    for outcome in sorted(search.outcomes, key=lambda o: o.candidate.milliseconds):
        candidate = outcome.candidate
        rows.append(
            [
                candidate.name,
                str(outcome.steps),
                f"{outcome.score:.4f}",
                share_of(outcome.score, search.teacher_score),
                f"{candidate.milliseconds:.3g}",
                f"{candidate.megabytes:.1f}",
                "front" * (outcome in search.front),
                "pick" * (outcome == search.pick),
            ]
        )
    return header, rows


def reasons(search: Search, out: Path) -> list[str]:
    """The reason for the choice, or how close the search came to its aim."""
    aim, score = search.plan.aim, search.teacher_score
    if search.pick is not None:
        name = search.pick.candidate.name
        if aim.keep is not None:
            why = f"it is the fastest that keeps {aim.keep:.1%} of the teacher's score on the dev rows"
        else:
            why = f"it scores best within the aim ({aim})"
        again = f"again, with another seed: tinybert run {out / 'pick.py'} --seed 1"
        return [f"pick: {name}: {why}", f"written to {search.directory}", *([again] if search.pick.steps else [])]
    best = max(search.outcomes, key=lambda o: o.score, default=None)
    if best is None:
        return [f"nothing was trained to its end, so nothing meets the aim ({aim}): read the notes above"]
    return [
        f"no candidate meets the aim ({aim}): {best.candidate.name} keeps most, {share_of(best.score, score)}",
        "a longer search may reach it: give a larger --budget and a new --out; or lower the aim, or compress and train"
        " by hand (docs/compression.md)",
    ]
