"""The `tinybert` command: run, finetune, distill, evaluate."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from tinybert_jax.config import ComputeDtype, DataSource, Experiment, InputError, LayerMap, Preset, Stage

Source = Annotated[DataSource, tyro.conf.OmitArgPrefixes]


def run(
    experiment: Annotated[Path, tyro.conf.Positional],
    /,
    out: Path | None = None,
    seed: int | None = None,
    resume: bool = False,
) -> None:
    """Run an experiment file: a Python file that defines `experiment = tinybert_jax.Experiment(...)`.

    Args:
        experiment: the file.
        out: directory of the run; default: runs/NAME-seedN.
        seed: replaces the file's.
        resume: continue the run in `out`.
    """
    if not experiment.is_file():
        raise InputError(f"{experiment}: no such file")
    try:
        described = runpy.run_path(str(experiment)).get("experiment")
    except SyntaxError as error:
        raise InputError(f"{error.filename}:{error.lineno}: {error.msg}") from None
    except Exception as error:
        raise InputError(f"{experiment}: {type(error).__name__}: {error}") from None
    if not isinstance(described, Experiment):
        raise InputError(f"{experiment}: defines no `experiment = tinybert_jax.Experiment(...)`")
    if seed is not None:
        described = dataclasses.replace(described, seed=seed)
    _train(described, out or Path("runs") / f"{experiment.stem}-seed{described.seed}", resume)


def finetune(
    model: str,
    task: str,
    source: Source,
    out: Path,
    epochs: int = 3,
    max_steps: int | None = None,
    batch_size: int = 32,
    learning_rate: float = 3e-5,
    max_length: int | None = None,
    evaluate_every: int | None = None,
    checkpoint_every: int = 500,
    compute_dtype: ComputeDtype = "float32",
    seed: int = 0,
    resume: bool = False,
) -> None:
    """Train a BERT on a task's labels, for example to make a teacher.

    Args:
        model: a Hugging Face directory or hub id.
        task: a row of the task table: cola, sst2, mrpc, stsb, qqp, mnli, mnli_mismatched, qnli, rte, wnli,
            classification, regression.
        source: where the rows are.
        out: directory of the run; the model is written to OUT/student.
        epochs: passes over the training rows.
        max_steps: end after this many steps, should that come before `epochs`.
        batch_size: rows a step.
        learning_rate: its peak, after a linear warm-up over 10 % of the steps; it falls to 0.
        max_length: tokens a row; longer ones are cut; default: the task's.
        evaluate_every: steps between evaluations; default: an epoch. The best state is kept.
        checkpoint_every: steps between checkpoints.
        compute_dtype: of activations; parameters are float32.
        seed: of everything random.
        resume: continue the run in `out`.
    """
    from tinybert_jax.tasks import get_task

    stage = Stage(
        "supervised",
        epochs=epochs,
        max_steps=max_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        evaluate_every=evaluate_every,
    )
    experiment = Experiment(
        task=task,
        source=source,
        model=model,
        stages=(stage,),
        max_length=get_task(task).max_length if max_length is None else max_length,
        compute_dtype=compute_dtype,
        checkpoint_every=checkpoint_every,
        seed=seed,
    )
    _train(experiment, out, resume)


def distill(
    teacher: str,
    student: str,
    task: str,
    source: Source,
    out: Path,
    stage: Literal["both", "transformer", "prediction", "supervised"] = "both",
    preset: Preset = "default",
    layer_map: LayerMap = "uniform",
    transformer_epochs: int | None = None,
    transformer_steps: int | None = None,
    transformer_learning_rate: float | None = None,
    prediction_epochs: int | None = None,
    prediction_steps: int | None = None,
    prediction_learning_rate: float | None = None,
    temperature: float = 1.0,
    batch_size: int = 32,
    max_length: int | None = None,
    evaluate_every: int | None = None,
    checkpoint_every: int = 500,
    compute_dtype: ComputeDtype = "float32",
    seed: int = 0,
    resume: bool = False,
) -> None:
    """Distil a fine-tuned BERT into a small student: first its layers, then its predictions.

    Args:
        teacher: a fine-tuned classifier or regressor: Hugging Face directory or hub id.
        student: tinybert-4l-312d, tinybert-6l-768d, tinybert-3l-192d, or a directory to start from.
        task: a row of the task table: cola, sst2, mrpc, stsb, qqp, mnli, mnli_mismatched, qnli, rte, wnli,
            classification, regression.
        source: where the rows are.
        out: directory of the run; the student is written to OUT/student.
        stage: both: layers ("transformer"), then predictions; or one of them; or "supervised", the baseline that
            learns from the labels alone, for as many steps as --prediction-epochs and --prediction-steps say.
        preset: default: the paper's losses, padding left out; paper: padding included; official: the arithmetic and
            optimizer of the authors' code.
        layer_map: which teacher layers teach; a list names one per student layer, counted from 1.
        transformer_epochs: of the first stage; default: the task's.
        transformer_steps: end the first stage after this many steps, should that come before its epochs.
        transformer_learning_rate: of the first stage, constant; default: the paper's 5e-5.
        prediction_epochs: of the second stage; default: the task's.
        prediction_steps: end the second stage after this many steps, should that come before its epochs.
        prediction_learning_rate: its peak in the second stage, after a linear warm-up over 10 % of the steps;
            default: the largest that the paper tries, 3e-5.
        temperature: divides both sides' logits in the second stage.
        batch_size: rows a step.
        max_length: tokens a row; longer ones are cut; default: the task's.
        evaluate_every: steps between evaluations in the second stage; default: an epoch. The best state is kept.
        checkpoint_every: steps between checkpoints.
        compute_dtype: of activations; parameters are float32.
        seed: of everything random.
        resume: continue the run in `out`.
    """
    from tinybert_jax.tasks import get_task

    recipe = get_task(task)
    first = Stage(
        "transformer",
        epochs=recipe.intermediate_epochs if transformer_epochs is None else transformer_epochs,
        max_steps=transformer_steps,
        batch_size=batch_size,
        learning_rate=(
            recipe.intermediate_learning_rate if transformer_learning_rate is None else transformer_learning_rate
        ),
        schedule="constant",
    )
    second = Stage(
        "supervised" if stage == "supervised" else "prediction",
        epochs=recipe.prediction_epochs if prediction_epochs is None else prediction_epochs,
        max_steps=prediction_steps,
        batch_size=batch_size,
        learning_rate=recipe.prediction_learning_rate
        if prediction_learning_rate is None
        else prediction_learning_rate,
        temperature=temperature,
        evaluate_every=evaluate_every,
    )
    experiment = Experiment(
        task=task,
        source=source,
        model=student,
        stages=(first, second) if stage == "both" else (first,) if stage == "transformer" else (second,),
        teacher=teacher,
        preset=preset,
        layer_map=layer_map,
        max_length=recipe.max_length if max_length is None else max_length,
        compute_dtype=compute_dtype,
        checkpoint_every=checkpoint_every,
        seed=seed,
    )
    _train(experiment, out, resume)


def evaluate(
    model: str,
    task: str,
    source: Source,
    split: Literal["dev", "test", "train"] = "dev",
    max_length: int | None = None,
    batch_size: int = 64,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    predictions: Path | None = None,
) -> None:
    """Score a fine-tuned or distilled model, and write its predictions.

    Args:
        model: a Hugging Face directory or hub id.
        task: a row of the task table: cola, sst2, mrpc, stsb, qqp, mnli, mnli_mismatched, qnli, rte, wnli,
            classification, regression.
        source: where the rows are.
        split: which of the source's splits; a test split without labels needs --predictions.
        max_length: tokens a row; longer ones are cut; default: what the model was trained with.
        batch_size: rows a compiled call.
        json_file: write the metrics here, as JSON.
        predictions: write one prediction per row here, as TSV with the columns index and prediction.
    """
    for path in (json_file, predictions):
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise InputError(f"{path}: not a file in an existing directory")
    from tinybert_jax import data, inputs, predict, rows, tasks

    row = tasks.get_task(task)
    predictor = predict.load_predictor(model, max_length, batch_size)
    labels = predictor.config.id2label
    inputs.check_outputs(model, predictor.config, row)
    read = rows.read_rows(row, source, split, None if row.is_regression else labels)
    if read.labels is None and (predictions is None or json_file is not None):
        raise InputError(f"the {split} split has no labels to score; only --predictions FILE can be written")
    logits = predictor.logits(data.tokenize(read, predictor.tokenizer, predictor.max_length))
    if predictions is not None:
        names = [f"{x:.3f}" for x in logits[:, 0]] if row.is_regression else [labels[i] for i in logits.argmax(1)]
        lines = ["index\tprediction", *(f"{i}\t{name}" for i, name in enumerate(names))]
        predictions.write_text("\n".join(lines) + "\n", "utf-8")
    if read.labels is not None:
        scores = tasks.score(row, logits, read.labels, labels)
        _print_table(["metric", split], [[name, f"{value:.4f}"] for name, value in scores.items()])
        if json_file is not None:
            json_file.write_text(json.dumps({"split": split, "rows": len(read.labels)} | scores, indent=2) + "\n")


def _train(experiment: Experiment, out: Path, resume: bool) -> None:
    from tinybert_jax import train

    try:
        result = train.run(experiment, out, resume)
    except train.Stopped as stopped:
        print(f"{stopped}\ncontinue with the same command and --resume")
        return
    except train.Diverged as diverged:
        raise InputError(str(diverged)) from None
    scores, teacher = result.scores, result.teacher_scores
    header = ["dev set", "model"] + (["teacher", "share"] if teacher else [])
    table = [[name, f"{value:.4f}"] for name, value in scores.items()]
    if teacher:
        for row in table:
            share = f"{scores[row[0]] / teacher[row[0]]:.1%}" if teacher[row[0]] else "-"
            row += [f"{teacher[row[0]]:.4f}", share]
    if table:
        _print_table(header, table)
    else:
        print("its head is not trained yet: give this directory as --student to --stage prediction")
    print(f"written to {result.directory}")


def _print_table(header: list[str], rows: list[list[str]]) -> None:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def keep_freed_memory() -> None:
    """Have glibc keep what is freed: XLA on CPU allocates its buffers anew in every step, a page fault per 4 kB."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_max, arena_max = -1, -4, -8  # malloc.h
        for parameter, value in ((trim_threshold, -1), (mmap_max, 0), (arena_max, 1)):
            libc.mallopt(parameter, value)


def main() -> None:
    """Entry point. Exit code 2 and one line where the input is wrong; 130 on Ctrl-C outside of training."""
    keep_freed_memory()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    commands: dict[str, Callable[..., Any]] = {
        "run": run,
        "finetune": finetune,
        "distill": distill,
        "evaluate": evaluate,
    }
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="tinybert",
            description="Make a BERT small and fast: TinyBERT distillation (arXiv 1909.10351) in JAX.",
        )
    except InputError as error:
        print(f"tinybert: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("tinybert: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
