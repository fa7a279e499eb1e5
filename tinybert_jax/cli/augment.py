"""The command `tinybert augment`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from tinybert_jax.cli.options import Source
from tinybert_jax.settings.choices import Preset
from tinybert_jax.settings.tasks import TASKS

AugmentableTask = Annotated[
    str,
    tyro.conf.arg(
        metavar="TASK",
        help=f"one of {', '.join(task.name for task in TASKS.values() if task.kind.has_variants)}",
    ),
]


def augment(
    model: str,
    task: AugmentableTask,
    source: Source,
    out: Path,
    glove: str | None = None,
    preset: Preset = "default",
    variants: int | None = None,
    max_length: int | None = None,
    batch_size: int | None = None,
    tsv: Path | None = None,
    seed: int = 0,
) -> None:
    """Find words that can replace each word of a task's rows; `distill --augmented OUT` trains on the variants.

    The same command continues after a stop.

    Args:
        model: a Hugging Face directory or hub id with a masked-LM head.
        task: a row of the task table whose inputs are texts or pairs of texts.
        source: where the rows are.
        out: directory of the candidates.
        glove: a GloVe or word2vec text file (or its .gz), for words of several pieces; default: the model's own word
            embeddings.
        preset: default: words of any script; paper: every word; official: as in the authors' code, words of the
            letters a to z, without stop words (by a list of ours), masked in a pair of texts.
        variants: number of variants per row in training, the row itself included; with preset official, beside the
            row, as in the authors' code; default: the task's.
        max_length: number of tokens of a text that the model reads; default: the task's.
        batch_size: masked words per compiled call; default: 16 on a CPU, else 64.
        tsv: also write every variant here, in the layout of the training file.
        seed: decides the variants that are printed or written; training draws with its own seed.
    """
    from tinybert_jax.data.augmentation import build

    samples = build.build(
        model,
        task,
        source,
        out,
        glove=glove,
        preset=preset,
        variants=variants,
        max_length=max_length,
        batch_size=batch_size,
        tsv=tsv,
        seed=seed,
    )
    for variants_of_row in samples:
        print("\n".join(" | ".join(texts) for texts in variants_of_row), end="\n\n")
    print(f"written to {out}; train on it with: tinybert distill --augmented {out} ...")
