"""The demo's table as a picture: accuracy over latency, with the MB on disk as the area of a bubble.

    python experiments/bubbles.py experiments/quickstart.json           # writes experiments/quickstart.svg
    python experiments/bubbles.py runs/quickstart-seed*/table.json --out experiments/quickstart.svg

`make demo` writes table.json and table.svg. Several seeds are drawn as means and standard deviations. The figures in
experiments/quickstart.json are those of the README's table.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

Table = dict[str, dict[str, float]]  # model and program -> accuracy, megabytes and milliseconds
AREA = 30  # square points for a MB


class Look(NamedTuple):
    """How a row of the table is drawn."""

    title: str
    color: str
    below: bool = False  # where its words stand


LOOKS = {  # other rows are not drawn: they are these models in other programs
    "teacher, JAX": Look("teacher", "#7f7f7f"),
    "teacher, ONNX Runtime, int8": Look("teacher, int8", "#404040", below=True),
    "student, JAX": Look("student", "#1f77b4"),
    "student, ONNX Runtime, int8": Look("student, int8", "#2ca02c", below=True),
    "labels alone, JAX": Look("the same student from labels alone", "#ff7f0e", below=True),
}
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)  # milliseconds


class Bubble(NamedTuple):
    """Means over seeds, and the standard deviation of the accuracy, in percent; 0 of one seed."""

    milliseconds: float
    accuracy: float
    spread: float
    megabytes: float


def bubble(rows: list[dict[str, float]]) -> Bubble:
    accuracies = [100 * row["accuracy"] for row in rows]
    spread = statistics.stdev(accuracies) if len(rows) > 1 else 0.0
    milliseconds, megabytes = (statistics.mean(row[key] for row in rows) for key in ("milliseconds", "megabytes"))
    return Bubble(milliseconds, statistics.mean(accuracies), spread, megabytes)


def draw(path: Path, tables: list[Table]) -> None:
    """A bubble for each model. The background is white, so it can be read on a dark page, too."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    bubbles = {name: bubble([table[name] for table in tables]) for name in LOOKS if name in tables[0]}
    with matplotlib.rc_context({"svg.hashsalt": "bubbles", "font.size": 11}):
        figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
        for name, (x, y, spread, megabytes) in bubbles.items():
            title, color, below = LOOKS[name]
            axes.scatter(x, y, AREA * megabytes, color=color, alpha=0.6, linewidths=0)
            if spread:
                axes.errorbar(x, y, spread, color=color, capsize=3)
            deviation = f" ± {spread:.1f}" if spread else ""
            text = f"{title}\n{y:.1f}{deviation} %, {x:.2f} ms, {megabytes:.0f} MB"
            away = (AREA * megabytes) ** 0.5 / 2 + 6  # points, from the middle of the bubble
            place: dict[str, Any] = {"xytext": (0, -away if below else away), "va": "top" if below else "bottom"}
            axes.annotate(text, (x, y), textcoords="offset points", ha="center", **place)
        every = [bubble.milliseconds for bubble in bubbles.values()]
        low, high = min(every) / 2.5, max(every) * 2.5  # room for the words
        heights = [bubble.accuracy for bubble in bubbles.values()]
        margin = 0.4 * (max(heights) - min(heights)) + 1
        axes.set(xscale="log", xlim=(low, high), ylim=(min(heights) - margin, max(heights) + margin))
        axes.minorticks_off()
        ticks = [tick for tick in TICKS if low < tick < high]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set(xlabel="milliseconds a text", ylabel="accuracy, %", title="area of a bubble: MB on disk")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path, nargs="+", help="a table.json of each seed")
    parser.add_argument("--out", type=Path, help="default: the first with the suffix .svg")
    args = parser.parse_args()
    out = args.out or args.tables[0].with_suffix(".svg")
    draw(out, [json.loads(file.read_text("utf-8")) for file in args.tables])
    print(f"written: {out}")


if __name__ == "__main__":
    main()
