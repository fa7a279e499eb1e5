"""A tokenizer that does not fit its model is refused with a line that says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tinybert_jax as tb


def test_vocabulary_without_special_tokens_is_refused(directory: Path) -> None:
    config, _ = tb.load_hf(directory)
    (directory / "tokenizer.json").unlink()
    (directory / "vocab.txt").write_text("\n".join(f"word{i}" for i in range(config.vocab_size)))
    with pytest.raises(tb.InputError, match=r"vocabulary has no pad token, which is to be '\[PAD\]': copy"):
        tb.load_tokenizer(directory, config)


@pytest.mark.parametrize("lost", ["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
def test_a_special_token_gets_no_id_that_the_model_was_not_trained_on(directory: Path, lost: str) -> None:
    config, _ = tb.load_hf(directory)
    vocabulary = (directory / "vocab.txt").read_text().split()
    (directory / "tokenizer.json").unlink()
    (directory / "vocab.txt").write_text("\n".join(token for token in vocabulary if token != lost))
    with pytest.raises(tb.InputError, match=rf"has no {lost[1:-1].lower()} token, which is to be '\{lost}': copy"):
        tb.load_tokenizer(directory, config)


def test_a_token_that_comes_twice_does_not_hide_ids_outside_the_embedding(directory: Path) -> None:
    config, _ = tb.load_hf(directory)
    vocabulary = (directory / "vocab.txt").read_text().split()
    (directory / "tokenizer.json").unlink()
    (directory / "vocab.txt").write_text("\n".join([*vocabulary[:90], *["the"] * 20]))
    with pytest.raises(tb.InputError, match="ids go up to 109, but the model's vocab_size is 99"):
        tb.load_tokenizer(directory, config)


def test_a_tokenizer_without_a_rust_backend_is_refused(directory: Path) -> None:
    config, _ = tb.load_hf(directory)
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "CanineTokenizer"}))
    with pytest.raises(tb.InputError, match=r"CanineTokenizer has no Rust backend, which is needed: give"):
        tb.load_tokenizer(directory, config)


@pytest.mark.parametrize("length", ["512", -1, True, [8], float("nan")])
def test_a_tokenizer_whose_longest_text_has_no_length_is_refused(directory: Path, length: object) -> None:
    config, _ = tb.load_hf(directory)
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": length}))
    with pytest.raises(tb.InputError, match=r"model_max_length is .*; it must be a number, at least 8"):
        tb.load_tokenizer(directory, config)


def test_missing_tokenizer_files_are_named(directory: Path) -> None:
    config, _ = tb.load_hf(directory)
    for name in ("tokenizer.json", "vocab.txt"):
        (directory / name).unlink()
    with pytest.raises(tb.InputError, match=r"no tokenizer\.json or vocab\.txt or vocab\.json"):
        tb.load_tokenizer(directory, config)
