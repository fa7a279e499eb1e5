"""Embedding models through the real program: distilled from raw sentences, scored, asked, exported."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BAD, GOOD, NEUTRAL, logged, write_model, write_sentence_model
from in_process import assert_refused, tinybert

import tinybert_jax as tb
from tinybert_jax.inference import evaluate

LENGTH = 16  # one bucket, so one compilation
WORDS = [*NEUTRAL, *GOOD, *BAD]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sentences.txt, and dev.tsv of pairs that are the more alike, the more words they share."""
    random, path = np.random.default_rng(0), tmp_path_factory.mktemp("texts")
    sentences = [" ".join(random.choice(WORDS, 8)) for _ in range(192)]
    (path / "sentences.txt").write_text("\n".join(sentences) + "\n")
    lines = ["sentence1\tsentence2\tscore"]
    for _ in range(64):
        words, shared = random.choice(WORDS, 8), int(random.integers(9))
        other = [*words[:shared], *random.choice(WORDS, 8 - shared)]
        lines.append(f"{' '.join(words)}\t{' '.join(random.permutation(other))}\t{5 * shared / 8}")
    (path / "dev.tsv").write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def source(texts: Path) -> tb.DataSource:
    return tb.DataSource(unlabelled=(str(texts / "sentences.txt"),), dev=str(texts / "dev.tsv"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher")
    plain = write_model(path / "plain", hidden_size=32, num_hidden_layers=4, intermediate_size=64)
    return write_sentence_model(path / "teacher", plain)


@pytest.fixture(scope="module")
def run(source: tb.DataSource, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A student half as wide, its layers distilled first, and the directory of its run."""
    stages = (
        tb.Stage("transformer", epochs=8, learning_rate=5e-3, schedule="constant"),
        tb.Stage("embedding", epochs=16, learning_rate=5e-3, evaluate_every=24),
    )
    out = tmp_path_factory.mktemp("run") / "run"
    experiment = tb.Experiment("embedding", source, "2x16", stages, str(teacher), max_length=LENGTH)
    return tb.run(experiment, out)


def test_debug(run: Any) -> None:
    print(run, [line for line in logged(run.directory.parent)][-1])
    assert 0
