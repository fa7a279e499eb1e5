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
    """Augment the training rows: find words that can replace each word, as in TinyBERT.

    Then `tinybert distill --augmented OUT` trains on rows with some words replaced (variants). If the command is
    stopped, give it again: it continues.

    Args:
        model: Hugging Face directory or hub id of a model with a masked-LM head (see `tinybert pretrain --recipe
            masked_lm`).
        task: the task. Its rows are texts or pairs of texts.
        source: where the rows are.
        out: directory for the table of candidate words.
        glove: GloVe or word2vec text file (or its .gz). Words of several pieces take their candidates from it.
            Default: from the model's word embeddings.
        preset: which words are replaced. default: words made of letters, in any script; paper: every word; official:
            as in the authors' code, words of the letters a to z that are not stop words (the list is ours); the
            masked text is read as a pair with the original one.
        variants: number of variants per row in training, including the row itself; with preset official, in addition
            to it. Default: the task's, 10, 20 or 30.
        max_length: tokens per text; longer texts are truncated. Default: the task's.
        batch_size: masked words per compiled call. Default: 16 on a CPU, else 64.
        tsv: also write all variants to this file, in the layout of the training file.
        seed: seed for the variants that are printed or written to --tsv. Training draws variants with its own seed.
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
