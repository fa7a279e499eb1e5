"""A model directory as a compiled, batched function from texts to predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from tinybert_jax import hf
from tinybert_jax.config import MIN_LENGTH, BertConfig, Head, InputError, Params
from tinybert_jax.data import PROGRESS_FROM, Examples, Tokens, bucket_lengths, encode, eval_batches
from tinybert_jax.heads import HEADS
from tinybert_jax.sharding import make_mesh, tree_shardings
from tinybert_jax.train_step import make_predict_step

# what a head that predicts is called, and whether a pooler is before it
NEEDS = {"sequence": ("classifier", True), "tokens": ("classifier", False), "span": ("qa_outputs", False)}


class Prediction(NamedTuple):
    """The most probable class and its probability; in regression the label is None and the value is the output."""

    label: str | None
    value: float


def outputs(
    step: Callable[..., Any],
    params: Params,
    examples: Examples,
    batch_size: int,
    buckets: tuple[int, ...],
    named: str,
) -> Iterator[tuple[np.ndarray, Any]]:
    """What a compiled `(params, batch)` step gives of every row, in the order of `data.eval_batches`, with the row
    numbers. Of many rows a progress bar, `named`, is shown.
    """
    from tqdm import tqdm

    running = None  # a batch is fetched once the next is dispatched: the device never waits, and no queue grows
    with tqdm(total=len(examples), desc=named, unit="row", disable=len(examples) < PROGRESS_FROM) as bar:
        for rows, batch in eval_batches(examples, batch_size, buckets):
            dispatched = rows, step(params, batch)
            if running is not None:
                yield running
            running = dispatched
            bar.update(int((rows >= 0).sum()))
        assert running is not None, "there is at least one row"
        yield running


def predict_logits(
    step: Callable[..., Any],
    params: Params,
    examples: Examples,
    batch_size: int,
    buckets: tuple[int, ...],
) -> np.ndarray:
    """Logits float32 [n, c] in the order of the rows, from a compiled `train_step.make_predict_step`.

    Of heads that label tokens, [n, q, c] with q the longest bucket; what lies behind a row's bucket is 0. Of many rows
    a progress bar is shown.
    """
    result = np.zeros(0, np.float32)
    for rows, output in outputs(step, params, examples, batch_size, buckets, "predict"):
        logits, real = np.asarray(output), rows >= 0
        per_token = logits.ndim == 3
        if not result.size:
            middle = (buckets[-1],) if per_token else ()
            result = np.zeros((len(examples), *middle, logits.shape[-1]), np.float32)
        at = (rows[real], slice(logits.shape[1])) if per_token else rows[real]
        result[at] = logits[real]
    return result


@dataclass(frozen=True, eq=False)
class Predictor:
    """A sequence classifier or regressor, ready to be called: `predictor(["a text"])`."""

    name: str  # the directory or hub id
    config: BertConfig
    params: Params
    tokenizer: Any
    max_length: int
    batch_size: int
    head: Head
    step: Callable[..., Any]

    def __call__(self, texts: Sequence[str | tuple[str, str]]) -> list[Prediction]:
        """One prediction per text, or per pair of texts.

        Raises:
            ValueError: `texts` is one string, mixes texts and pairs, or holds rows of more than two or what is no text
                (the NaN of an empty cell); or the head is not that of a sequence.
            InputError: as `logits`.
        """
        if self.head != "sequence":
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
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = odds / odds.sum(axis=1, keepdims=True)
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
    directory: str | Path, max_length: int | None = None, batch_size: int = 32, head: Head = "sequence"
) -> Predictor:
    """A sequence classifier or regressor from a Hugging Face directory or hub id.

    Args:
        directory: holds a classifier, as `tinybert distill` and `finetune` write it.
        max_length: longer texts are cut, in tokens; default: what the model was trained with, as its tokenizer says.
        batch_size: texts per compiled call; the last call is filled up.
        head: "sequence"; of "tokens" and "span" the predictor gives `logits` only.

    Raises:
        InputError: the directory cannot be read, or holds no such head; another head; a number is too small.
    """
    if head not in NEEDS:
        raise InputError(f"head is {head!r}; it must be one of {', '.join(NEEDS)}")
    if batch_size < 1 or (max_length is not None and max_length < MIN_LENGTH):
        raise InputError(
            f"batch_size is {batch_size} and max_length {max_length}; they must be at least 1 and {MIN_LENGTH}"
        )
    config, params = hf.load_hf(directory)
    tokenizer = hf.load_tokenizer(directory, config)
    length = max_length or max(MIN_LENGTH, min(tokenizer.model_max_length, config.max_position_embeddings))
    check_head(str(directory), config, params, head, length)
    mesh = make_mesh()
    params = jax.device_put(params, tree_shardings(mesh, params))
    step = make_predict_step(HEADS[head](config), mesh, params)
    return Predictor(str(directory), config, params, tokenizer, length, batch_size, head, step)


def check_head(name: str, config: BertConfig, params: Params, head: Head, max_length: int) -> None:
    """Refuse a model that has not the head that is asked for, several labels a row, or too few positions.

    Raises:
        InputError: says what is missing.
    """
    key, pooler = NEEDS[head]
    if key not in params or (head != "span" and ("pooler" in params["bert"]) != pooler):
        what = {"sequence": "sequence classifier", "tokens": "token classifier", "span": "question answering head"}
        raise InputError(f"{name}: holds no {what[head]}; fine-tune it first: tinybert finetune --model {name}")
    if head == "sequence" and config.problem_type == "multi_label_classification":
        raise InputError(f"{name}: is a multi-label classifier (problem_type); only one label a row is supported")
    check_positions(name, config, max_length)


def check_token_types(name: str, config: BertConfig, pairs: bool) -> None:
    """Refuse a model of one token type where there are pairs of texts.

    Raises:
        InputError: it has one.
    """
    if pairs and config.type_vocab_size < 2:
        raise InputError(f"{name}: has 1 token type, but the rows are pairs of texts: take a model with two")


def check_positions(name: str, config: BertConfig, max_length: int) -> None:
    """Refuse a model that has fewer positions than `max_length`.

    Raises:
        InputError: it has fewer.
    """
    if config.max_position_embeddings < max_length:
        raise InputError(
            f"{name}: has {config.max_position_embeddings} positions, fewer than max_length {max_length}: give a"
            " smaller --max-length"
        )
