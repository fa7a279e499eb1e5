"""The record: every benchmark in a process of its own, and the tables of docs/benchmarks.md and the picture of them.

    python experiments/benchmarks/record.py --data SST-2-DIR --out runs/benchmarks.jsonl

What was measured of this commit is in --out and not measured again, so the command continues; `--render` measures
nothing. Nothing else should run meanwhile. Without --data the epochs are of food reviews.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import tyro

HERE = Path(__file__).parent
PAGE, PICTURE = HERE.parent.parent / "docs/benchmarks.md", HERE / "speed.svg"
BEGIN, END = "<!-- from here: experiments/benchmarks/record.py -->\n", "<!-- to here -->\n"
SIZES = {"bert-base": "BERT_BASE to TinyBERT4", "minilm": "MiniLM to 3 x 192"}
SAMPLES = {"epoch.py": "640", "augment.py": "32"}  # rows of text
Found = dict[str, Any]


def commands(data: Path | None) -> list[str]:
    texts = "" if data is None else f" --data {shlex.quote(str(data))}"
    of_size = [
        "step.py",
        "step.py --dtype bfloat16",
        "step.py --memory-only --length 128",
        "step.py --memory-only --length 384",
        f"epoch.py --rows {SAMPLES['epoch.py']}{texts}",
        f"epoch.py --rows {SAMPLES['epoch.py']} --padding longest{texts}",
        f"epoch.py --rows {SAMPLES['epoch.py']} --stage prediction{texts}",
        "population.py",
        "inference.py --length 128",
        "inference.py --length 32",
        "growth.py",
    ]
    augment = [f"augment.py --rows {SAMPLES['augment.py']} --shape {size}" for size in SIZES]
    whole = [*augment, "corpus.py --megabytes 10"]
    return [f"{command} --size {size}" for command in of_size for size in SIZES] + whole


def measure(command: str, commit: str, out: Path) -> None:
    """Run one benchmark and append its line to `out`."""
    print(f"\n{command}", flush=True)
    name, *options = shlex.split(command)
    with tempfile.TemporaryDirectory() as directory:
        line = Path(directory) / "line"
        subprocess.run([sys.executable, str(HERE / name), *options, "--json", str(line)], check=True)
        entry = {"command": command, "commit": commit} | json.loads(line.read_text("utf-8"))
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


class Row(NamedTuple):
    """One measured thing of a table: the command that measures it, and the names of its numbers, one a column."""

    command: str
    numbers: tuple[str, ...]
    times: float = 1.0  # from the numbers' unit to the table's


class Table(NamedTuple):
    """A table of one unit: its title, its columns after the first two, and its rows by their labels."""

    title: str
    columns: tuple[str, ...]
    rows: dict[str, Row]


SIDES = ("ours", "PyTorch", "PyTorch / ours")
MS = ("ours_ms", "torch_ms", "torch_ms / ours_ms")
MB = ("ours_peak_mb", "torch_peak_mb", "torch_peak_mb / ours_peak_mb")
EPOCH = ("ours_examples_per_s", "torch_examples_per_s", "torch_s / ours_s")
THREE_EPOCHS = ("", "", "torch_s / ours_s, three epochs with the answers")
AUGMENT = ("ours_sentences_per_s", "torch_one_word_sentences_per_s", "torch_one_word_s / ours_s")
REAL_TOKENS = ("ours_real_tokens", "torch_real_tokens")


def inference(batch: int) -> tuple[str, ...]:
    at = f"batch_{batch}"
    times = [f"{at}_student_{side}_ms" for side in ("ours", "torch", "onnx")]
    return (*times, f"{at}_torch / ours", f"{at}_onnx / ours", f"{at}_teacher / student")


TABLES = (
    Table(
        "Time of an intermediate step, 32 rows x 64 tokens, ms",
        SIDES,
        {
            "with the teacher in it": Row("step.py", MS),
            "with the teacher's outputs cached": Row("step.py", ("known_ms", "torch_ms", "torch_ms / known_ms")),
            "in bfloat16 (PyTorch: autocast), the teacher in it": Row("step.py --dtype bfloat16", MS),
            "compiling it": Row("step.py", ("compile_s",), 1000),
            "compiling it from JAX's cache of compiled programs": Row("step.py", ("compile_from_cache_s",), 1000),
        },
    ),
    Table(
        "Throughput, texts a second",
        ("ours", "PyTorch", "ours / PyTorch"),
        {
            "intermediate epoch": Row("epoch.py", EPOCH),
            "three of them, with the time that caching takes": Row("epoch.py", THREE_EPOCHS),
            "intermediate epoch, PyTorch padding to the longest row": Row("epoch.py --padding longest", EPOCH),
            "three of them, with the time that caching takes, PyTorch padding to the longest row": Row(
                "epoch.py --padding longest", THREE_EPOCHS
            ),
            "prediction epoch": Row("epoch.py --stage prediction", EPOCH),
            "augmentation (PyTorch: one masked word a call)": Row("augment.py", AUGMENT),
        },
    ),
    Table(
        "Peak memory of an intermediate step, rows x tokens, MB",
        SIDES,
        {
            "32 x 128": Row("step.py --memory-only --length 128", MB),
            "32 x 384": Row("step.py --memory-only --length 384", MB),
        },
    ),
    Table(
        "Latency of the student's inference, rows x tokens, ms",
        ("ours", "PyTorch", "ONNX Runtime", "PyTorch / ours", "ONNX Runtime / ours", "our teacher / ours"),
        {
            f"{batch} x {length}": Row(f"inference.py --length {length}", inference(batch))
            for length in (128, 32)
            for batch in (1, 32)
        },
    ),
    Table(
        "Shares, %",
        ("ours", "PyTorch"),
        {
            "real tokens of all positions, PyTorch padding to 64": Row("epoch.py", REAL_TOKENS, 100),
            "real tokens of all positions, PyTorch padding to the longest row": Row(
                "epoch.py --padding longest", REAL_TOKENS, 100
            ),
            "matmul rate of the step, of the machine's": Row("step.py", ("ours_share_of_matmul",), 100),
            "matmul rate of its student's backward, of the machine's": Row(
                "step.py", ("backward_share_of_matmul",), 100
            ),
            "time of 8 students together, of 8 runs'": Row(
                "population.py", ("time of the population / of the runs",), 100
            ),
            "FLOPs of 8 students together, of 8 runs'": Row(
                "population.py", ("FLOPs of the population / of the runs",), 100
            ),
            "time of 8 students together, of 8 runs', all with the teacher's outputs cached": Row(
                "population.py", ("the same, answers kept",), 100
            ),
        },
    ),
)


def short(value: float) -> str:
    """Three digits, and no powers of ten."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def matching(lines: list[Found], start: str, size: str) -> Found | None:
    """The line of a command with these options, apart from where its texts are."""
    for line in lines:
        name, *options = shlex.split(line["command"])
        if "--data" in options:
            del options[options.index("--data") : options.index("--data") + 2]
        wanted = start.split()
        chosen = [*wanted[1:], *(["--rows", SAMPLES[name]] if name in SAMPLES else [])]
        shape = ["--shape" if name == "augment.py" else "--size", size]
        if name == wanted[0] and sorted(options) == sorted(chosen + shape):
            return line
    return None


def filled(table: Table, lines: list[Found]) -> list[list[str]]:
    """Its heading and rows, without the rows and the columns that have no number."""
    rows = []
    for label, row in table.rows.items():
        for size, models in SIZES.items():
            numbers = matching(lines, row.command, size) or {}
            names = [*row.numbers, *[""] * (len(table.columns) - len(row.numbers))]
            cells = [short(numbers[name] * row.times) if name in numbers else "" for name in names]
            if any(cells):
                rows.append([label, models, *cells])
                label = ""  # as in the row above
    used = [0, 1, *(i for i in range(2, len(table.columns) + 2) if any(row[i] for row in rows))]
    return [[row[i] for i in used] for row in (["", "models", *table.columns], *rows)] if rows else []


def page(lines: list[Found]) -> str:
    """The part of docs/benchmarks.md that is measured here."""
    text = ""
    for each in TABLES:
        if rows := filled(each, lines):
            rows.insert(1, ["---"] * len(rows[0]))
            text += f"### {each.title}\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows) + "\n"
    rates = [line["matmul_gflops_per_s"] for line in lines if "matmul_gflops_per_s" in line]
    machine = lines[-1]
    corpus = next((line["10MB_1p_MB/s"] for line in lines if line["command"].startswith("corpus")), None)
    text += f"Commit {machine['commit'][:7]}; {machine['cpus']} CPU cores, jax {machine['jax']}, torch"
    text += f" {machine['torch']}; one large product runs at"
    text += f" {min(rates):.0f} to {max(rates):.0f} GFLOP/s."
    text += "" if corpus is None else f" A corpus becomes shards at {corpus:.1f} MB/s in one process."
    disturbed = [line for line in lines if line["busy_before"] > 0.1 and line["benchmark"] != "memory"]
    busy = [f"{line['command'].split()[0]} ({line['busy_before']:.0%})" for line in disturbed]
    return text + (f" Other work ran in the second before: {', '.join(busy)}.\n" if busy else "\n")


def draw(lines: list[Found]) -> None:
    """How much faster, and how a step's time grows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.fonttype"] = "none"
    pyplot.rcParams["svg.hashsalt"] = "record"
    bars = {
        "step": ("step.py", "torch_ms / ours_ms"),
        "step, teacher's outputs cached": ("step.py", "torch_ms / known_ms"),
        "three intermediate epochs, PyTorch padding to 64": (
            "epoch.py",
            "torch_s / ours_s, three epochs with the answers",
        ),
        "three prediction epochs, likewise": (
            "epoch.py --stage prediction",
            "torch_s / ours_s, three epochs with the answers",
        ),
        "augmentation": ("augment.py", "torch_one_word_s / ours_s"),
        "inference, batch 1": ("inference.py --length 128", "batch_1_torch / ours"),
        "inference, batch 32": ("inference.py --length 128", "batch_32_torch / ours"),
    }
    bars = {name: bar for name, bar in bars.items() if any(matching(lines, bar[0], size) for size in SIZES)}
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for offset, (size, name) in zip((-0.2, 0.2), SIZES.items(), strict=True):
        lengths = [(matching(lines, start, size) or {}).get(number, 0.0) for start, number in bars.values()]
        drawn = left.barh([i + offset for i in range(len(bars))], lengths, 0.4, label=name)
        left.bar_label(drawn, fmt="%.1fx", fontsize=7, padding=2)
    left.axvline(1, color="black", linewidth=0.8)
    left.set(yticks=range(len(bars)), yticklabels=list(bars), title="times faster than PyTorch")
    left.invert_yaxis()
    left.legend(fontsize=8)
    for size, style in zip(SIZES, ("-", "--"), strict=True):
        grown = matching(lines, "growth.py", size) or {}
        for color, axis in enumerate(axis for axis in ("length", "batch", "layers", "population") if axis in grown):
            at, ms = [int(x) for x in grown[axis]], list(grown[axis].values())
            scaled = [x / at[0] for x in at], [y / ms[0] for y in ms]
            right.plot(
                *scaled, style, color=f"C{color}", marker="o", markersize=3, label=f"{axis} from {at[0]}, {size}"
            )
    right.set(
        xscale="log", yscale="log", xlabel="times larger", ylabel="times longer", title="a step with its teacher"
    )
    right.legend(fontsize=7)
    figure.savefig(PICTURE, metadata={"Date": None})


def main(out: Path, data: Path | None = None, render: bool = False) -> None:
    """Measure everything, and write the tables of docs/benchmarks.md and the picture.

    Args:
        out: file of the measured lines.
        data: directory with SST-2's train.tsv.
        render: only write the tables and the picture of what is in `out`.
    """
    out.parent.mkdir(parents=True, exist_ok=True)

    def read() -> list[Found]:
        return [json.loads(line) for line in out.read_text("utf-8").splitlines()] if out.is_file() else []

    if not render:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=HERE, check=True, capture_output=True, text=True
        ).stdout
        done = {line["command"] for line in read() if line["commit"] == commit.strip()}
        for command in commands(data):
            if command not in done:
                measure(command, commit.strip(), out)
    lines = read()
    if not lines:
        sys.exit(f"{out}: nothing was measured yet; leave --render out")
    lines = [line for line in lines if line["commit"] == lines[-1]["commit"]]  # a page is of one commit
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}{page(lines)}{END}{after}", "utf-8")
    draw(lines)
    print(f"\nwritten: {PAGE}, {PICTURE}")


if __name__ == "__main__":
    tyro.cli(main)
