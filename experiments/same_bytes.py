"""Which method wins at the same bytes: a quarter, a tenth and a twentieth of a fine-tuned teacher's ONNX file.

    python experiments/same_bytes.py --task sst2 --data SST-2 --teacher runs/teacher/student --max-length 64 \\
        --seeds 0 --out runs/same-bytes

The teacher's vocabulary is cut to the training rows first, and all word tables but the fresh students' are factorised
to a third. At a quarter the files are float32, below that int8. Fresh students start from the teacher, and learn its
layers and predictions; whatever is compressed learns predictions alone. Results go to OUT/results.jsonl, a line for
each cell and seed; what is there is not computed again. Prints a table, and draws OUT/same_bytes.svg.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from shared import run_main, table

import tinybert_jax as tb
from tinybert_jax.export.export import export_model
from tinybert_jax.inference.evaluate import evaluate
from tinybert_jax.settings.tasks import get_task
from tinybert_jax.training.record import is_begun

STEPS = 200  # of what was compressed
WORDS = 0.34  # what is left of the word table's parameters
FRESH = (
    tb.Stage(tb.Transformer(), max_steps=200, learning_rate=5e-4, schedule="constant"),
    tb.Stage(tb.Prediction(), max_steps=100, learning_rate=3e-4),
)


class Cell(NamedTuple):
    """A method at a number of bytes."""

    bytes: str
    method: str
    form: str  # of the export
    student: str = ""  # a size; "": the teacher, compressed
    methods: tuple[Any, ...] = ()
    learning_rate: float = 3e-5


CELLS = [
    Cell("1/4", "distilled student, 6x192", "onnx", "6x192"),
    Cell("1/4", "pruned to 0.33", "onnx", methods=(tb.Prune(0.33), tb.LowRank(None, WORDS))),
    Cell("1/4", "low rank, 0.33", "onnx", methods=(tb.LowRank(0.33, WORDS),)),
    Cell("1/4", "shared, 2 groups", "onnx", methods=(tb.Share(2), tb.LowRank(None, WORDS)), learning_rate=1e-4),
    Cell("1/4", "pruned to 0.55, low rank 0.6", "onnx", methods=(tb.Prune(0.55), tb.LowRank(0.6, WORDS))),
    Cell("1/10", "distilled student, 6x252", "onnx-int8", "6x252"),
    Cell("1/10", "pruned to 0.66", "onnx-int8", methods=(tb.Prune(0.66), tb.LowRank(None, WORDS))),
    Cell("1/10", "low rank, 0.66", "onnx-int8", methods=(tb.LowRank(0.66, WORDS),)),
    Cell("1/10", "shared, 3 groups", "onnx-int8", methods=(tb.Share(3), tb.LowRank(None, WORDS)), learning_rate=1e-4),
    Cell("1/10", "pruned to 0.8, low rank 0.82", "onnx-int8", methods=(tb.Prune(0.8), tb.LowRank(0.82, WORDS))),
    Cell("1/20", "distilled student, 4x192", "onnx-int8", "4x192"),
    Cell("1/20", "pruned to 0.22", "onnx-int8", methods=(tb.Prune(0.22), tb.LowRank(None, WORDS))),
    Cell("1/20", "low rank, 0.22", "onnx-int8", methods=(tb.LowRank(0.22, WORDS),)),
    Cell("1/20", "shared, 1 group", "onnx-int8", methods=(tb.Share(1), tb.LowRank(None, WORDS)), learning_rate=1e-4),
    Cell("1/20", "pruned to 0.45, low rank 0.5", "onnx-int8", methods=(tb.Prune(0.45), tb.LowRank(0.5, WORDS))),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True)
    parser.add_argument("--data", required=True, help="directory in the task's GLUE layout")
    parser.add_argument("--teacher", required=True, help="a fine-tuned model")
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    source, results = tb.DataSource(data=args.data), args.out / "results.jsonl"
    args.out.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    known = {(line["bytes"], line["method"], line["seed"]) for line in lines}
    for seed in args.seeds:
        for cell in CELLS:
            if (cell.bytes, cell.method, seed) not in known:
                lines.append(measure(cell, seed, args, source))
                with results.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
    metric = get_task(args.task).selection
    whole = evaluate(args.teacher, args.task, source, max_length=args.max_length)[metric]
    print(f"\nteacher: {metric} {whole:.4f}\n{summary(lines, whole)}")
    draw(args.out / "same_bytes.svg", lines, whole, metric)


def measure(cell: Cell, seed: int, args: argparse.Namespace, source: tb.DataSource) -> dict[str, Any]:
    """Train, export and score a cell."""
    cut = args.out / "cut"
    if not cut.exists():
        tb.compress(args.teacher, args.task, source, (tb.Vocabulary(),), cut, args.max_length)
    folder = args.out / f"{cell.bytes.replace('/', '-')} {cell.method} {seed}"
    alone = tb.Stage(tb.Prediction(), max_steps=STEPS, learning_rate=cell.learning_rate, compression=cell.methods)
    # a fresh student has the vocabulary of its teacher
    teacher, stages = (str(cut), FRESH) if cell.student else (args.teacher, (alone,))
    experiment = tb.Experiment(
        args.task, source, cell.student or str(cut), stages, teacher, max_length=args.max_length, seed=seed
    )
    result = tb.run(experiment, folder, resume=is_begun(folder))
    shutil.rmtree(folder / "export", ignore_errors=True)
    [exported] = export_model(str(result.directory), folder / "export", (cell.form,))
    score = evaluate(str(folder / "export"), args.task, source, max_length=args.max_length)
    selection = get_task(args.task).selection
    megabytes = exported.file.stat().st_size / 1e6
    return {"bytes": cell.bytes, "method": cell.method, "seed": seed, "MB": megabytes, "score": score[selection]}


def summary(lines: list[dict[str, Any]], whole: float) -> str:
    """A Markdown table: what each method keeps of the teacher's score, by its bytes."""
    rows = []
    for cell in CELLS:
        of_cell = [line for line in lines if (line["bytes"], line["method"]) == (cell.bytes, cell.method)]
        if of_cell:
            kept = [100 * line["score"] / whole for line in of_cell]
            spread = f" ± {statistics.stdev(kept):.1f}" if len(kept) > 1 else ""
            megabytes = statistics.mean(line["MB"] for line in of_cell)
            rows.append([cell.bytes, cell.method, f"{megabytes:.1f}", f"{statistics.mean(kept):.1f}{spread}"])
    return table(["of the teacher's bytes", "method", "MB", "kept, %"], rows)


def draw(path: Path, lines: list[dict[str, Any]], whole: float, metric: str) -> None:
    """What is kept over the bytes, a line for each kind of method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = {"distilled": "distilled student", "pruned": "pruned", "low": "low rank", "shared": "shared"}
    points: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for line in lines:
        first = line["method"].split()[0].strip(",")
        kind = "pruned, then low rank" if "," in line["method"] and first == "pruned" else kinds[first]
        point = line["MB"], 100 * line["score"] / whole
        points.setdefault(kind, {}).setdefault(line["bytes"], []).append(point)
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for kind, by_bytes in points.items():
        means = sorted(tuple(map(statistics.mean, zip(*of_cell, strict=True))) for of_cell in by_bytes.values())
        axes.plot([x for x, _ in means], [y for _, y in means], marker="o", label=kind)
    axes.set(xscale="log", xlabel="MB of the ONNX file", ylabel=f"{metric}, % of the teacher's")
    axes.set_xticks([5, 10, 20], ["5", "10", "20"])
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path)
    pyplot.close(figure)


if __name__ == "__main__":
    run_main(main)
