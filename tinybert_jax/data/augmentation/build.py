"""A task's training rows and a masked LM -> a directory of candidates, which training draws its variants from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tinybert_jax.data.augmentation import candidates, neighbours
from tinybert_jax.data.augmentation.candidate_table import Settings
from tinybert_jax.data.augmentation.rules import RULES
from tinybert_jax.data.augmentation.variants import check_truncation, load_augmented, variant_texts, write_variants
from tinybert_jax.data.rows import read_rows, split_path
from tinybert_jax.errors import InputError, check_parent, check_seed
from tinybert_jax.models.files.directory import load_hf
from tinybert_jax.models.files.frame import frame_of
from tinybert_jax.models.files.hub import fingerprint
from tinybert_jax.models.files.tokenizer import load_tokenizer
from tinybert_jax.models.fit import check_has_head, check_positions
from tinybert_jax.models.masked_lm import masked_lm_function
from tinybert_jax.settings.choices import Preset
from tinybert_jax.settings.sources import DataSource
from tinybert_jax.settings.tasks import get_task

SAMPLES = 3  # rows whose variants are returned as samples


def build(
    model: str,
    task: str,
    source: DataSource,
    out: Path,
    glove: str | None = None,
    preset: Preset = "default",
    variants: int | None = None,
    max_length: int | None = None,
    batch_size: int | None = None,
    tsv: Path | None = None,
    seed: int = 0,
) -> list[list[tuple[str, ...]]]:
    """Compute the candidates of all words of the training rows into `out`, or those that are missing there.

    Args:
        model: a Hugging Face directory or hub id with a masked-LM head.
        task: a row of the task table, for a sequence task.
        source: where the training rows are.
        out: the directory, which is created; a table that was begun with the same settings is continued.
        glove: a GloVe or word2vec text file (or its .gz); None: neighbours come from the model's word embeddings.
        preset: the rules that say which words are replaced, and by which words.
        variants: variants per row in training, the row itself included, or with preset official excluded; default: the
            task's.
        max_length: tokens of the longest text that the model reads; default: the task's.
        batch_size: masked words per call of the model; default: 16 on a CPU, else 64.
        tsv: write every variant here, in the layout of the training file.
        seed: the seed of the variants written or returned; training draws with its own.

    Returns:
        The first variants of a few rows, the row itself first.

    Raises:
        InputError: the model has no masked-LM head, the rows cannot be read, `out` holds something else, ...
    """
    check_seed("seed", seed)
    row = get_task(task)
    if not row.kind.has_variants:
        raise InputError(f"task {task!r} is trained on its own rows; augmentation is for texts and pairs of texts")
    if option := source.adding_option:
        raise InputError(f"rows without labels have no variants: leave out {option}")
    if tsv is not None:
        if source.text_template:
            raise InputError(
                "--tsv writes the columns of the training file, which --text-template joins: leave one out"
            )
        if source.tfds is not None or split_path(row, source, "train").suffix.lower() != ".tsv":
            raise InputError(
                "--tsv writes in the layout of the training file, which is no .tsv: leave --tsv out, or give a .tsv"
            )
        check_parent(tsv)
        if tsv.exists():
            raise InputError(f"{tsv}: exists already; choose another --tsv")
    config, params = load_hf(model)
    check_has_head(model, config, params, "masked_lm")
    asked = row.variants if variants is None else variants
    settings = Settings(
        preset,
        asked if RULES[preset].counts_row else asked + 1,
        row.max_length if max_length is None else max_length,
        fingerprint(model),
    )
    tokenizer = load_tokenizer(model, config)
    frame = frame_of(tokenizer)
    check_positions(model, config, settings.input_length(frame))
    if RULES[preset].in_pairs and frame.has_types and config.type_vocab_size == 1:
        raise InputError(f"{model}: has 1 token type; --preset official gives the masked LM a pair of texts")
    check_truncation(tokenizer)
    rows = read_rows(row, source, "train")
    table = np.asarray(params["encoder"]["embeddings"]["word_embeddings"]["embedding"])
    near = neighbours.load_neighbours(None if glove is None else Path(glove), table, tokenizer, preset)
    predict = masked_lm_function(config, params, RULES[preset].asked)
    candidates.build_table(out, rows, tokenizer, predict, near, settings, batch_size)
    augmented = load_augmented(out, rows, tokenizer, settings.max_length, seed)
    if tsv is not None:
        named = source.names_columns
        columns = source.text_columns or row.text_columns
        headerless = () if named else row.headerless_columns
        path = split_path(row, source, "train")
        write_variants(tsv, augmented, rows, tokenizer, path, columns, headerless)
    return [variant_texts(augmented, rows, tokenizer, i)[:3] for i in range(min(SAMPLES, len(rows.texts)))]
