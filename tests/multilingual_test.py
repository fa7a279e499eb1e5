"""A multilingual MiniLM is a BERT with the tokenizer of XLM-R: read, distilled, and its vocabulary cut."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import BAD, GOOD, NEUTRAL, family_tokenizer
from in_process import tinybert
from safetensors.numpy import load_file
from transformers import AutoTokenizer, XLMRobertaTokenizer

import tinybert_jax as tb
from tinybert_jax.compression.vocabulary import smaller_vocabulary
from tinybert_jax.data.tokens import encode

FIXTURE = Path(__file__).parent / "fixtures" / "tiny-multilingual"
UNREAD = tuple(f"word{chr(97 + i)}" for i in range(26))  # of other languages, which no row has


@pytest.mark.long
def test_its_vocabulary_is_cut_and_its_padding_is_that_of_the_tokenizer(tmp_path: Path) -> None:
    config, params = tb.load_hf(FIXTURE)
    tokenizer = tb.load_tokenizer(FIXTURE, config)
    assert isinstance(tokenizer, XLMRobertaTokenizer)
    assert (config.pad_token_id, tokenizer.pad_token_id) == (0, 1)
    texts = [("a film very good",), ("dull plot",)]
    rows = encode(texts, tokenizer, 16)
    smaller, fewer, new = smaller_vocabulary(config, params, tokenizer, rows.input_ids.tolist())
    assert smaller.vocab_size < config.vocab_size
    assert (smaller.pad_token_id, smaller.model_type) == (new.pad_token_id, "bert")
    tb.save_hf(tmp_path / "small", smaller, fewer, new)
    before, after = (load_file(path / "model.safetensors") for path in (FIXTURE, tmp_path / "small"))
    assert before.keys() == after.keys()
    again = AutoTokenizer.from_pretrained(tmp_path / "small")
    assert isinstance(again, XLMRobertaTokenizer)
    for (text,) in texts:
        assert again.tokenize(text) == tokenizer.tokenize(text)
        predictors = [tb.load_predictor(path, head="sequence") for path in (FIXTURE, tmp_path / "small")]
        np.testing.assert_allclose(*(each.probabilities([text]) for each in predictors), atol=1e-6)


@pytest.mark.long
def test_it_teaches_a_student_whose_vocabulary_the_command_cuts(
    reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = family_tokenizer("xlm-roberta", [*NEUTRAL, *GOOD, *BAD, *UNREAD])
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = tb.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, initializer_range=0.1, **sizes)
    params = {"encoder": tb.init_params(tb.BertModel(config), jax.random.key(0))}
    tb.save_hf(tmp_path / "model", config, params, tokenizer)
    source = tb.DataSource(data=str(reviews))
    learning = {"batch_size": 32, "evaluate_every": 10**6}
    stages = (tb.Stage("supervised", epochs=8, learning_rate=5e-3, **learning),)
    settings = {"max_length": 16, "preset": "paper"}
    experiment = tb.Experiment("classification", source, str(tmp_path / "model"), stages, **settings)
    teacher = tb.run(experiment, tmp_path / "teacher").directory
    stages = (
        tb.Stage("transformer", epochs=3, batch_size=32, learning_rate=1e-2),
        tb.Stage("prediction", epochs=16, learning_rate=1e-2, **learning),
    )
    experiment = tb.Experiment("classification", source, "1x16", stages, str(teacher), **settings)
    result = tb.run(experiment, tmp_path / "run")
    assert result.scores["accuracy"] > 0.9
    options = ("--task", "classification", "--data", reviews, "--max-length", 16, "--no-report")
    code = tinybert(
        monkeypatch,
        "compress",
        "--model",
        result.directory,
        "--out",
        tmp_path / "out",
        "--vocabulary",
        "data",
        *options,
    )
    assert code == 0
    before, after = (json.loads((path / "config.json").read_text()) for path in (result.directory, tmp_path / "out"))
    assert after["vocab_size"] <= before["vocab_size"] - len(UNREAD)
    assert (after["model_type"], after["architectures"]) == ("bert", ["BertForSequenceClassification"])
    assert isinstance(AutoTokenizer.from_pretrained(tmp_path / "out"), XLMRobertaTokenizer)
    assert tb.load_predictor(tmp_path / "out")(["we bought awful chips"])[0].label == "bad"
