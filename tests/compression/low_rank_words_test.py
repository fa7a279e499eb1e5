"""A BERT with a word table of low rank is a MobileBERT without bottlenecks, which `transformers` loads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY, distillation, rest_long

import tinybert_jax as tb
from tinybert_jax.compression.low_rank import factorise
from tinybert_jax.compression.prune import prune
from tinybert_jax.compression.share import share
from tinybert_jax.compression.vocabulary import smaller_vocabulary
from tinybert_jax.data.tokens import Tokens
from tinybert_jax.export.export import program
from tinybert_jax.models.files.tensors import head_of
from tinybert_jax.models.heads import HEADS

FIXTURES = TINY.parent
WORDS = tb.LowRank(dense=None, words=0.4)
LENGTHS = np.array([8, 5, 3, 6, 2, 7] * 4, np.int32)


def rows(config: tb.BertConfig) -> Tokens:
    ids = np.random.default_rng(0).integers(5, config.vocab_size, LENGTHS.sum()).astype(np.int32)
    labels = (np.arange(len(LENGTHS)) % config.num_labels).astype(np.int32)
    return Tokens(ids, np.append(0, np.cumsum(LENGTHS)), LENGTHS, labels, "rows", config.pad_token_id)


def inputs_of(config: tb.BertConfig) -> list[np.ndarray]:
    """Ids, mask and token types of rows with padding."""
    ids, mask, types = (np.array(array) for array in rows(config).batch(np.arange(6), 8, 0)[:3])
    return [ids, mask, types | (mask & (np.arange(8) > 1))]


def outputs(config: tb.BertConfig, params: Any) -> np.ndarray:
    """On real tokens."""
    inputs = inputs_of(config)
    result = np.asarray(program(config, params)(params, *map(jnp.asarray, inputs)))
    return result[inputs[1] > 0] if result.ndim == 3 else result


def bert(head: str) -> tuple[tb.BertConfig, Any]:
    """A BERT with that head whose tables are as small as those of a pretrained one."""
    name = {"sequence": "tiny-bert", "tokens": "tiny-bert-token", "span": "tiny-bert-qa", "encoder": "tiny-bert"}[head]
    config, params = tb.load_hf(FIXTURES / name)
    if head == "encoder":
        del params["classifier"]
    tables = params["encoder"]["embeddings"]
    small = {key: {"embedding": table["embedding"] * 0.1} for key, table in tables.items() if key != "LayerNorm"}
    return config, params | {"encoder": params["encoder"] | {"embeddings": tables | small}}


KINDS = ("encoder", "sequence", "tokens", "span")


@pytest.mark.parametrize("head", rest_long(KINDS, ["encoder", "sequence"]))
def test_the_mobilebert_is_the_bert_with_the_product_as_its_table(head: str, tmp_path: Path) -> None:
    config, params = bert(head)
    smaller, factors = factorise(WORDS, config, params, rows(config))
    assert (smaller.model_type, smaller.loads_in_transformers) == ("mobilebert", True)
    as_bert = dataclasses.replace(smaller, model_type="bert")
    np.testing.assert_allclose(outputs(smaller, factors), outputs(as_bert, factors), atol=2e-5)
    tb.save_hf(tmp_path, smaller, factors)
    described = json.loads((tmp_path / "config.json").read_text())
    assert described["architectures"] == [f"MobileBert{HEADS[head].architecture}"]
    assert (described["model_type"], described["embedding_size"]) == ("mobilebert", smaller.ranks.word_embeddings)
    again, loaded = tb.load_hf(tmp_path)
    assert again == smaller
    jax.tree.map(np.testing.assert_array_equal, loaded, factors)


@pytest.mark.parametrize("head", KINDS)
def test_transformers_loads_it_and_computes_the_same(head: str, tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    smaller, factors = factorise(WORDS, *bert(head), rows(bert(head)[0]))
    factors["encoder"]["embeddings"]["word_embeddings_projection"]["bias"] += 0.1  # as after training
    tb.save_hf(tmp_path, smaller, factors)
    kind = getattr(transformers, f"AutoModel{HEADS[head].architecture.removeprefix('Model')}")
    model, loading = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values()), loading
    ids, mask, types = (torch.as_tensor(array).long() for array in inputs_of(smaller))
    with torch.inference_mode():
        out = model.eval()(input_ids=ids, attention_mask=mask, token_type_ids=types)
    if head == "span":
        result = torch.stack([out.start_logits, out.end_logits], dim=-1)
    else:
        result = out.last_hidden_state if head == "encoder" else out.logits
    result = result[mask > 0] if result.ndim == 3 else result
    np.testing.assert_allclose(outputs(smaller, factors), result.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["tiny-bert-mlm", "tiny-roberta", "tiny-distilbert", "tiny-albert"])
def test_where_transformers_has_no_such_class_it_stays_slim(name: str) -> None:
    config, params = tb.load_hf(FIXTURES / name)
    smaller, _ = factorise(WORDS, config, params, rows(config))
    assert smaller.model_type == config.model_type
    assert smaller.to_hf()["model_type"] == f"slim-{config.model_type}"


def test_dense_factors_and_narrow_heads_stay_slim() -> None:
    config, params = tb.load_hf(TINY)
    assert factorise(tb.LowRank(0.5, 0.4), config, params, rows(config))[0].model_type == "bert"
    narrow = prune(tb.Prune(0.4, uniform=True, rounds=1), config, params, rows(config))
    assert not narrow[0].loads_in_transformers
    assert factorise(WORDS, *narrow, rows(config))[0].to_hf()["model_type"] == "slim-bert"


def test_what_may_follow_follows_and_the_rest_says_so() -> None:
    config, params = tb.load_hf(TINY)
    model = factorise(WORDS, config, params, rows(config))
    for refused in (
        lambda: factorise(WORDS, *model, rows(config)),
        lambda: prune(tb.Prune(0.5), *model, rows(config)),
    ):
        with pytest.raises(tb.InputError, match="cannot follow low rank"):
            refused()
    shared = share(tb.Share(config.num_hidden_layers), *model, rows(config))
    assert shared[0].model_type == "albert"
    # the LayerNorms behind MobileBERT's feed-forward networks add 1e-5, and ALBERT's 1e-12
    np.testing.assert_allclose(outputs(*shared), outputs(*model), atol=1e-5)
    assert tb.pad_heads(*model) == model
    tokenizer = tb.load_tokenizer(TINY, config)
    fewer, cut, _ = smaller_vocabulary(*model, tokenizer, range(20, 60))
    assert fewer.loads_in_transformers
    assert fewer.vocab_size < config.vocab_size
    assert np.isfinite(outputs(fewer, cut)).all()
    quantised = dataclasses.replace(model[0], weight_bits=8)
    assert quantised.to_hf()["model_type"] == "mobilebert"


@pytest.mark.slow
def test_it_is_trained_exported_and_asked(teacher: Path, reviews: Path, tmp_path: Path) -> None:
    result = tb.run(distillation(teacher, teacher, reviews, compression=(WORDS,)), tmp_path / "run")
    assert result.scores["accuracy"] > 0.9
    config, params = tb.load_hf(result.directory)
    assert (config.model_type, head_of(params, config)) == ("mobilebert", "sequence")
    bias = params["encoder"]["embeddings"]["word_embeddings_projection"]["bias"]
    assert (bias != 0).any()
    card = (result.directory / "README.md").read_text()
    assert "`transformers` loads it too: `AutoModelForSequenceClassification.from_pretrained" in card
    # on, as a student and as a teacher
    stages = (tb.Stage("prediction", epochs=8, learning_rate=3e-3, evaluate_every=16),)
    experiment = distillation(result.directory, result.directory, reviews, stages=stages)
    assert tb.run(experiment, tmp_path / "again").scores["accuracy"] > 0.9
    small = dataclasses.replace(experiment, model="2x16", stages=(tb.Stage("transformer", max_steps=2),))
    assert tb.load_hf(tb.run(small, tmp_path / "small").directory)[0].model_type == "bert"
    texts = ["we bought lovely chips", "we bought awful chips"]
    assert [row.label for row in tb.load_predictor(result.directory)(texts)] == ["good", "bad"]
    if pytest.importorskip("onnxruntime"):
        (export,) = tb.export_model(str(result.directory), tmp_path / "export", ("onnx",))
        values = [[row.value for row in tb.load_predictor(path)(texts)] for path in (export.file, result.directory)]
        np.testing.assert_allclose(*values, atol=1e-5)


def test_words_are_not_masked_for_it(teacher: Path, reviews: Path, tmp_path: Path) -> None:
    config, params = tb.load_hf(teacher)
    tb.save_hf(tmp_path / "m", *factorise(WORDS, config, params, rows(config)), tb.load_tokenizer(teacher, config))
    corpus = tmp_path / "text.txt"
    corpus.write_text("we bought lovely chips\n\nwe bought awful chips\n")
    experiment = tb.Experiment(
        "corpus", tb.CorpusSource((str(corpus),)), str(tmp_path / "m"), (tb.Stage("masked_lm"),)
    )
    experiment = dataclasses.replace(experiment, max_length=16)
    with pytest.raises(tb.InputError, match="A MobileBERT with a masked-LM head is not supported: take a BERT"):
        tb.run(experiment, tmp_path / "run")
