"""Compression of a fine-tuned model without training, with scores after each method."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from tinybert_jax.batch import Params
from tinybert_jax.compression.links import Link, link, markdown, notes, table
from tinybert_jax.compression.table import build_method, check_methods
from tinybert_jax.data.batches import bucket_lengths
from tinybert_jax.data.labels import named_by
from tinybert_jax.devices.sharding import make_mesh
from tinybert_jax.errors import InputError, check_unused
from tinybert_jax.inference.step import make_predict_step, predict_logits
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.files.bitmask import PACKED_FILE
from tinybert_jax.models.files.card import front_matter, shown, task_results, use_of, without_places
from tinybert_jax.models.files.directory import load_hf, save_hf
from tinybert_jax.models.files.tokenizer import load_tokenizer, trained_length
from tinybert_jax.models.fit import check_head, check_outputs, check_token_types
from tinybert_jax.models.heads import HEADS
from tinybert_jax.models.parameters import count_parameters
from tinybert_jax.settings.choices import EVAL_BATCH_SIZE, MIN_LENGTH
from tinybert_jax.settings.compression import CompressionSettings
from tinybert_jax.settings.sources import DataSource
from tinybert_jax.settings.tasks import Task, get_task
from tinybert_jax.tasks.kinds import load_split, with_template_of
from tinybert_jax.tasks.split import Split


def compress(
    model: str,
    task: str,
    source: DataSource,
    methods: Sequence[CompressionSettings],
    out: str | Path,
    max_length: int | None = None,
    pack: bool = False,
) -> list[Link]:
    """Apply compression methods to a fine-tuned model, one after the other, and write the result to a directory.

    Args:
        model: Hugging Face directory or hub id of a model that was fine-tuned on the task.
        task: a row of the task table.
        source: where the rows are. Training rows measure importance, dev rows score.
        methods: settings, in the order in which they are applied.
        out: a new or empty directory, for the model and a model card with the table of results.
        max_length: tokens per row; default: the length that the model was trained with.
        pack: store matrices with many zeros without the zeros. Only this package can read the file.

    Returns:
        The model's scores and size before the methods and after each.

    Raises:
        InputError: the model or the rows cannot be read or do not fit, `out` is not empty, or a method is not possible
            after another one.
    """
    out, row = Path(out), get_task(task)
    if trained := [settings.name for settings in methods if settings.min_steps]:
        raise InputError(
            f"compression {trained[0]!r} acts while a model is trained, and here none is: use `tinybert distill`"
        )
    check_unused(out)
    config, params = load_hf(model)
    check_methods(methods, config, row.head)
    tokenizer = load_tokenizer(model, config)
    length = trained_length(tokenizer, config) if max_length is None else max_length
    if length < MIN_LENGTH:
        raise InputError(f"max_length is {length}; it must be at least {MIN_LENGTH}")
    check_head(model, config, params, row.head, length)
    check_outputs(model, config, row)
    source = with_template_of(tokenizer, row, source)

    def load(split: Literal["train", "dev"]) -> Split:
        with named_by(model):
            return load_split(row, source, split, tokenizer, length, config.id2label)

    train, dev = load("train"), load("dev")
    dev.check_measurable()
    check_token_types(model, config, train.tokens.has_pairs or dev.tokens.has_pairs)
    tokens = float(train.tokens.lengths.mean())
    scores = _scores("loading", config, params, row.head, dev, length)
    chain = [link("whole", config, params, tokens, scores)]
    for settings in methods:
        print(f"applying {settings.name}", file=sys.stderr, flush=True)
        method, note = build_method(settings), ""
        config, params = method.apply(config, params, train.tokens)
        if method.retokenize is not None:
            before, pieces = dev.tokens, config.vocab_size
            config, params, tokenizer = method.retokenize(config, params, tokenizer, train.tokens)
            train, dev = load("train"), load("dev")
            more = len(dev.tokens.input_ids) / len(before.input_ids) - 1
            unknown = int((dev.tokens.input_ids == tokenizer.unk_token_id).sum())
            note = f"{config.vocab_size:,} of {pieces:,} pieces"
            note += f"; {more:.1%} more tokens in the dev rows, {unknown} unknown"
        scores = _scores(settings.name, config, params, row.head, dev, length)
        note = "; ".join(filter(None, (note, method.note(config, params))))
        chain.append(link(settings.name, config, params, tokens, scores)._replace(note=note))
    tokenizer.model_max_length = length  # that of the measured texts
    save_hf(out, config, params, tokenizer, packed=pack)
    if pack:
        sizes = ((out / PACKED_FILE).stat().st_size / 1e6, 4 * count_parameters(params) / 1e6)
        note = f"packed: {sizes[0]:.1f} MB for {sizes[1]:.1f}"
        chain[-1] = chain[-1]._replace(note="; ".join(filter(None, (chain[-1].note, note))))
    (out / "README.md").write_text(_card(model, row, source, config, methods, chain, pack), "utf-8")
    return chain


def _scores(name: str, config: BertConfig, params: Params, head: str, dev: Split, length: int) -> dict[str, float]:
    mesh = make_mesh()
    placed = jax.device_put(params)
    step = make_predict_step(HEADS[head].model(config), mesh, placed)
    logits = predict_logits(step, placed, dev.tokens, EVAL_BATCH_SIZE, bucket_lengths(length))
    if not np.isfinite(logits).all():
        raise InputError(f"after {name}, the model's outputs on the dev set are not finite")
    return dev.score(logits)


def _card(
    model: str,
    task: Task,
    source: DataSource,
    config: BertConfig,
    methods: Sequence[CompressionSettings],
    chain: Sequence[Link],
    pack: bool,
) -> str:
    described = [{"name": settings.name} | vars(settings) for settings in methods]
    title, use = f"{shown(model)}, compressed, for {task.name}", use_of(task.head, task.kind.by_query)
    loads = "`tinybert_jax` alone reads its packed file." if pack else use.loading(config)
    metadata = front_matter(
        title,
        config,
        [model],
        library="tinybert_jax" if pack else use.library(config),
        pipeline_tag=use.pipeline,
        tags=["compression", config.model_type],
        results=task_results(task, source, chain[-1].scores, use.pipeline),
    )
    return f"""{metadata}# {title}
{chr(10).join([markdown(*table(chain)), "", *notes(chain)])}

```python
import tinybert_jax as tb
{use.code}
```
{loads} In ONNX, what was pruned is left out.

## Methods
```json
{json.dumps(without_places(described), indent=2)}
```
"""
