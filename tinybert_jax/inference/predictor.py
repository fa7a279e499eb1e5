"""A model directory as a compiled, batched function from texts to predictions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.special import softmax

from tinybert_jax.batch import Params
from tinybert_jax.data.batches import bucket_lengths
from tinybert_jax.data.tokens import Tokens, encode
from tinybert_jax.devices.sharding import make_mesh, tree_shardings
from tinybert_jax.errors import InputError
from tinybert_jax.inference.exported import exported_file, load_step
from tinybert_jax.inference.step import make_predict_step, predict_logits
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.files.directory import load_architectures, load_config, load_hf
from tinybert_jax.models.files.tokenizer import load_tokenizer, trained_length
from tinybert_jax.models.fit import check_architecture, check_head, check_token_types
from tinybert_jax.models.heads import HEADS
from tinybert_jax.models.quantized import int8_is_faster, quantized
from tinybert_jax.settings.choices import MIN_LENGTH


class Prediction(NamedTuple):
    """The most probable class and its probability; in regression the label is None and the value is the output."""

    label: str | None
    value: float


@dataclass(frozen=True, eq=False)
class Predictor:
    """A sequence classifier or regressor, ready to be called: `predictor(["a text"])`."""

    name: str  # the directory or hub id
    config: BertConfig
    params: Params
    tokenizer: Any
    max_length: int
    batch_size: int
    head: str
    step: Callable[..., Any]

    def __call__(self, texts: Sequence[str | tuple[str, str]]) -> list[Prediction]:
        """One prediction per text, or per pair of texts.

        Raises:
            ValueError: `texts` is one string, mixes texts and pairs, or holds rows of more than two or what is no text
                (the NaN of an empty cell); or the head is not that of a sequence.
            InputError: as `logits`.
        """
        if HEADS[self.head].per_token:
            raise ValueError(f"a {self.head} head gives one output per token: see `logits`, and `tinybert evaluate`")
        if isinstance(texts, str):
            raise ValueError("give a list of texts, even of one")
        rows = [tuple(row) if isinstance(row, Iterable) and not isinstance(row, str) else (row,) for row in texts]
        if no_texts := [part for row in rows for part in row if not isinstance(part, str)]:
            raise ValueError(f"give texts, or pairs of texts; {no_texts[0]!r} is none")
        widths = {len(row) for row in rows}
        if not widths:
            return []
        if widths not in ({1}, {2}):
            raise ValueError(f"give texts, or pairs of texts; these rows hold {sorted(widths)} texts")
        logits = self.logits(encode(rows, self.tokenizer, self.max_length))
        if self.config.num_labels == 1:
            return [Prediction(None, float(value)) for value in logits[:, 0]]
        probabilities = softmax(logits, axis=1)
        best = probabilities.argmax(axis=1)
        return [Prediction(self.config.id2label[i], float(row[i])) for i, row in zip(best, probabilities, strict=True)]

    def logits(self, tokens: Tokens) -> np.ndarray:
        """Logits float32 [n, c] of tokenised rows.

        Raises:
            InputError: the rows are pairs of texts, and the model has one token type.
        """
        check_token_types(self.name, self.config, tokens.has_pairs)
        buckets = bucket_lengths(self.max_length)
        return predict_logits(self.step, self.params, tokens, self.batch_size, buckets)


def load_predictor(
    directory: str | Path,
    max_length: int | None = None,
    batch_size: int = 32,
    head: str = "sequence",
    int8: bool = False,
) -> Predictor:
    """A sequence classifier or regressor from a Hugging Face directory or hub id, or as `tinybert export` wrote it.

    Args:
        directory: holds a classifier, as `tinybert distill` and `finetune` write it; or an ONNX or StableHLO file of
            one, which may also be named itself.
        max_length: longer texts are cut, in tokens; default: what the model was trained with, as its tokenizer says.
        batch_size: texts per compiled call; the last call is filled up.
        head: "sequence"; of "tokens" and "span" the predictor gives `logits` only.
        int8: dense layers multiply in int8 where this processor is faster with it. Models that are quantised already
            do so without this.

    Raises:
        InputError: the directory cannot be read, or holds no such head; another head; a number is too small; `int8` of
            an exported model.
    """
    predicting = [name for name, row in HEADS.items() if row.on_tasks]
    if head not in predicting:
        raise InputError(f"head is {head!r}; it must be one of {', '.join(predicting)}")
    if batch_size < 1 or (max_length is not None and max_length < MIN_LENGTH):
        raise InputError(
            f"batch_size is {batch_size} and max_length {max_length}; they must be at least 1 and {MIN_LENGTH}"
        )
    exported = exported_file(directory)
    if exported is not None:
        if int8:
            raise InputError(f"{directory}: is exported, in the numbers that its format has: leave int8 out")
        file, directory = exported
        config = load_config(directory)
        params: Params = {}
        step = load_step(file)
    else:
        config, params = load_hf(directory)
    tokenizer = load_tokenizer(directory, config)
    length = max_length or trained_length(tokenizer, config)
    if exported is not None:
        check_architecture(str(file), config, load_architectures(directory), head, length)
    else:
        check_head(str(directory), config, params, head, length)
        if config.weight_bits is not None or (int8 and int8_is_faster()):
            config, params = quantized(config, params)
        elif int8:
            print("note: float32 stays, as int8 is no faster on this processor", file=sys.stderr)
        mesh = make_mesh()
        params = jax.device_put(params, tree_shardings(mesh, params))
        step = make_predict_step(HEADS[head].model(config), mesh, params)
    return Predictor(str(directory), config, params, tokenizer, length, batch_size, head, step)
