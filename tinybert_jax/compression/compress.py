"""Compress a fine-tuned model at once, without training, and score it after each method."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np

from tinybert_jax.batch import Params
from tinybert_jax.compression.table import build_method
from tinybert_jax.data.batches import bucket_lengths
from tinybert_jax.devices.sharding import make_mesh
from tinybert_jax.errors import InputError, check_unused
from tinybert_jax.inference.step import make_predict_step, predict_logits
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.files.bitmask import PACKED_FILE
from tinybert_jax.models.files.directory import load_hf, save_hf
from tinybert_jax.models.files.tokenizer import load_tokenizer, trained_length
from tinybert_jax.models.fit import check_head, check_outputs
from tinybert_jax.models.heads import HEADS
from tinybert_jax.models.parameters import count_parameters, encoder_macs
from tinybert_jax.settings.compression import CompressionSettings
from tinybert_jax.settings.sources import DataSource
from tinybert_jax.settings.tasks import get_task
from tinybert_jax.tasks.kinds import load_split
from tinybert_jax.tasks.split import Split

EVAL_BATCH_SIZE = 64


class Link(NamedTuple):
    """A model in the chain of methods: the whole one first."""

    name: str  # of the method
    scores: dict[str, float]  # on the dev set
    parameters: int
    macs: float  # multiply-adds of the encoder on a training row of mean length, without those of zeros
    note: str = ""  # more that the method did


def compress(
    model: str,
    task: str,
    source: DataSource,
    methods: Sequence[CompressionSettings],
    out: str | Path,
    max_length: int | None = None,
    pack: bool = False,
) -> list[Link]:
    """Apply compression methods to a fine-tuned model, one after the other, and write the last result to a directory.

    Args:
        model: a Hugging Face directory or hub id, fine-tuned on the task.
        task: a row of the task table.
        source: where the rows are: training rows measure what is important, dev rows score.
        methods: settings, in their order.
        out: the directory, new or empty. It holds the model and a model card with the chain.
        max_length: tokens a row; default: what the model was trained with.
        pack: write matrices with many zeros without them; only this library reads the file.

    Raises:
        InputError: the model or the rows cannot be read or do not fit, `out` is not empty, or a method cannot follow
            what came before it.
    """
    out, row = Path(out), get_task(task)
    check_unused(out)
    config, params = load_hf(model)
    tokenizer = load_tokenizer(model, config)
    length = max_length or trained_length(tokenizer, config)
    check_head(model, config, params, row.head, length)
    check_outputs(model, config, row)
    labels = config.id2label if row.kind.names_classes else None

    def load(split: Literal["train", "dev"]) -> Split:
        return load_split(row, source, split, tokenizer, length, labels)

    train, dev = load("train"), load("dev")
    if not dev.labelled:
        raise InputError("the dev set has no labels: nothing can be measured on it")
    tokens = float(train.tokens.lengths.mean())
    chain = [_link("whole", config, params, row.head, dev, tokens, length)]
    for settings in methods:
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
        link = _link(settings.name, config, params, row.head, dev, tokens, length)
        note = "; ".join(filter(None, (note, method.note(config, params))))
        chain.append(link._replace(note=note))
    save_hf(out, config, params, tokenizer, packed=pack)
    if pack:
        sizes = ((out / PACKED_FILE).stat().st_size / 1e6, 4 * count_parameters(params) / 1e6)
        note = f"packed: {sizes[0]:.1f} MB for {sizes[1]:.1f}"
        chain[-1] = chain[-1]._replace(note="; ".join(filter(None, (chain[-1].note, note))))
    (out / "README.md").write_text(_card(model, task, config, methods, chain, pack), "utf-8")
    return chain


def table(chain: Sequence[Link]) -> tuple[list[str], list[list[str]]]:
    """The chain as a table, for the command and the model card: shares are those of the whole model."""
    whole = chain[0]
    header = ["after", *whole.scores, "kept", "parameters", "encoder's multiply-adds"]
    first = next(iter(whole.scores))
    rows = [
        [
            link.name,
            *(f"{value:.4f}" for value in link.scores.values()),
            f"{link.scores[first] / whole.scores[first]:.1%}" if whole.scores[first] else "-",
            f"{link.parameters / 1e6:.1f} M",
            f"{link.macs / whole.macs:.1%}",
        ]
        for link in chain
    ]
    return header, rows


def notes(chain: Sequence[Link]) -> list[str]:
    """What the methods did beside what the table shows, a line for each that did more."""
    return [f"{link.name}: {link.note}" for link in chain if link.note]


def _link(name: str, config: BertConfig, params: Params, head: str, dev: Split, tokens: float, length: int) -> Link:
    mesh = make_mesh()
    placed = jax.device_put(params)
    step = make_predict_step(HEADS[head].model(config), mesh, placed)
    logits = predict_logits(step, placed, dev.tokens, EVAL_BATCH_SIZE, bucket_lengths(length))
    if not np.isfinite(logits).all():
        raise InputError(f"after {name}, the model's outputs on the dev set are not finite")
    return Link(name, dev.score(logits), count_parameters(params), encoder_macs(config, params, tokens))


def _card(
    model: str,
    task: str,
    config: BertConfig,
    methods: Sequence[CompressionSettings],
    chain: Sequence[Link],
    pack: bool,
) -> str:
    header, rows = table(chain)
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
    described = [{"name": settings.name} | vars(settings) for settings in methods]
    loads = "`transformers` loads it." if config.loads_in_transformers else "No class of `transformers` has its shape."
    loads = "`tinybert_jax` alone reads its packed file." if pack else loads
    return f"""---
library_name: transformers
tags: [compression, {config.model_type}]
---
# {model}, compressed, for {task}
{chr(10).join([*lines, "", *notes(chain)])}

{loads} `tinybert export` writes it as ONNX, without what was pruned.

```python
import tinybert_jax as tb
predict = tb.load_predictor("this directory")
```

## Methods
```json
{json.dumps(described, indent=2)}
```
"""
