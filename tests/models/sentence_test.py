"""Directories of sentence-transformers are read and written, with the vectors that their modules say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import IDENTITY, TINY, TYPES, rest_long, write_json, write_sentence_model
from safetensors.numpy import load_file, save_file

import tinybert_jax as tb
from tinybert_jax.models.files.hub import fingerprint
from tinybert_jax.models.files.tensors import head_of
from tinybert_jax.models.files.tokenizer import trained_length
from tinybert_jax.models.fit import check_has_head
from tinybert_jax.models.heads import HEADS


def inputs_of(config: tb.BertConfig) -> tuple[np.ndarray, np.ndarray]:
    mask = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]], np.int32)
    return np.random.default_rng(0).integers(5, config.vocab_size, (2, 6)).astype(np.int32) * mask, mask


def vectors_of(config: tb.BertConfig, params: Any, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    model = HEADS["embedding"].model(config)
    return np.asarray(model.apply({"params": params}, jnp.asarray(ids), jnp.asarray(mask)).logits)


def expected_vectors(directory: Path, mode: str, normalize: bool, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """In plain numpy from the states of the encoder, row by row without its padding."""
    config, params = tb.load_hf(directory)
    bare = {name: part for name, part in params["encoder"].items() if name != "pooler"}
    out = tb.BertModel(config, add_pooler=False).apply({"params": bare}, jnp.asarray(ids), jnp.asarray(mask))
    rows = []
    for states, real in zip(np.asarray(out.last_hidden_state), mask.astype(bool), strict=True):
        pool: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "cls_token": lambda x: x[0],
            "mean_tokens": lambda x: x.mean(axis=0),
            "max_tokens": lambda x: x.max(axis=0),
        }
        vector = pool[mode](states[real])
        if (dense := directory / "2_Dense/model.safetensors").is_file():
            weights = load_file(dense)
            vector = weights["linear.weight"] @ vector + weights["linear.bias"]
            is_tanh = "Tanh" in json.loads((directory / "2_Dense/config.json").read_text())["activation_function"]
            vector = np.tanh(vector) if is_tanh else vector
        rows.append(vector / np.linalg.norm(vector) if normalize else vector)
    return np.stack(rows)


MODES = ("cls_token", "mean_tokens", "max_tokens")


@pytest.mark.parametrize(
    ("width", "normalize", "mode"),
    rest_long(
        [(*more, mode) for more in [(None, True), (10, False), (30, True)] for mode in MODES],
        [(None, True, MODES[0]), (10, False, MODES[1]), (30, True, MODES[2])],
    ),
)
def test_vectors_are_those_of_the_modules(mode: str, width: int | None, normalize: bool, tmp_path: Path) -> None:
    directory = write_sentence_model(tmp_path / "model", mode=mode, width=width, normalize=normalize)
    config, params = tb.load_hf(directory)
    ids, mask = inputs_of(config)
    vectors = vectors_of(config, params, ids, mask)
    assert vectors.shape == (2, width or 24)
    expected = expected_vectors(directory, mode, normalize, ids, mask)
    np.testing.assert_allclose(vectors, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("width", "normalize"), rest_long([(None, True), (None, False), (10, True)], [(None, False), (10, True)])
)
def test_a_written_directory_has_the_files_and_is_the_same_model(
    width: int | None, normalize: bool, tmp_path: Path
) -> None:
    source = write_sentence_model(tmp_path / "source", width=width, normalize=normalize)
    classifier = tb.load_hf(source)[1].pop("classifier")
    assert classifier  # the fixture has one, which is another head
    config, params = tb.load_hf(source)
    params = {name: part for name, part in params.items() if name != "classifier"}
    tokenizer = tb.load_tokenizer(source, config)
    assert trained_length(tokenizer, config) == 12  # max_seq_length
    written = tmp_path / "written"
    tb.save_hf(written, config, params, tokenizer)
    for name in ("modules.json", "sentence_bert_config.json", "1_Pooling/config.json"):
        assert json.loads((written / name).read_text()) == json.loads((source / name).read_text()), name
    assert (written / "2_Dense/config.json").is_file() == (width is not None)
    described = json.loads((written / "config.json").read_text())
    assert described["architectures"] == ["BertModel"]
    assert "embedding" not in described
    assert not any(name.startswith(("bert.", "embedding_dense")) for name in load_file(written / "model.safetensors"))
    again, again_params = tb.load_hf(written)
    assert again.embedding == config.embedding
    assert head_of(again_params, again) == "embedding"
    ids, mask = inputs_of(config)
    np.testing.assert_array_equal(vectors_of(again, again_params, ids, mask), vectors_of(config, params, ids, mask))


def test_newer_files_name_the_pooling_by_a_word(tmp_path: Path) -> None:
    directory = write_sentence_model(tmp_path / "model")
    write_json(directory / "1_Pooling/config.json", {"word_embedding_dimension": 24, "pooling_mode": "cls"})
    modules = (directory / "modules.json").read_text().replace(TYPES, "sentence_transformers.base.modules.")
    (directory / "modules.json").write_text(modules)
    assert tb.load_hf(directory)[0].embedding == ("cls", None, True, (), "Identity", None)


def test_a_dense_module_without_a_bias_and_in_torch_s_form_is_read(tmp_path: Path) -> None:
    directory = write_sentence_model(tmp_path / "model", width=10)
    weights = load_file(directory / "2_Dense/model.safetensors")
    save_file({"linear.weight": weights["linear.weight"]}, directory / "2_Dense/model.safetensors")
    dense = tb.load_hf(directory)[1]["embedding_dense"]
    assert dense["bias"].tolist() == [0.0] * 10
    np.testing.assert_array_equal(dense["kernel"], weights["linear.weight"].T)


def test_a_dense_module_with_an_activation_is_read_and_written(tmp_path: Path) -> None:
    directory = write_sentence_model(tmp_path / "model", width=10)
    described = json.loads((directory / "2_Dense/config.json").read_text())
    described["activation_function"] = "torch.nn.modules.activation.Tanh"
    write_json(directory / "2_Dense/config.json", described)
    config, params = tb.load_hf(directory)
    ids, mask = inputs_of(config)
    expected = expected_vectors(directory, "mean_tokens", True, ids, mask)
    np.testing.assert_allclose(vectors_of(config, params, ids, mask), expected, rtol=1e-5, atol=1e-5)
    tb.save_hf(tmp_path / "written", config, {name: params[name] for name in ("encoder", "embedding_dense")})
    assert json.loads((tmp_path / "written/2_Dense/config.json").read_text()) == described
    del described["activation_function"]  # which sentence-transformers takes for its default
    write_json(directory / "2_Dense/config.json", described)
    assert tb.load_hf(directory)[0] == config


def test_a_default_prompt_stands_before_every_text_but_for_another(tmp_path: Path) -> None:
    directory = write_sentence_model(tmp_path / "model")
    settings = {"prompts": {"query": "good ", "passage": "bad "}, "default_prompt_name": "query"}
    expected = {prompt: tb.load_predictor(directory, head="embedding").embed([f"{prompt} film"]) for prompt in PROMPTS}
    write_json(directory / "config_sentence_transformers.json", settings)
    predictor = tb.load_predictor(directory, head="embedding")
    np.testing.assert_array_equal(predictor.embed(["film"]), expected["good"])
    np.testing.assert_array_equal(predictor.embed(["film"], prompt_name="passage"), expected["bad"])
    config, params = tb.load_hf(directory)
    tb.save_hf(tmp_path / "written", config, {"encoder": params["encoder"]}, tb.load_tokenizer(directory, config))
    assert json.loads((tmp_path / "written/config_sentence_transformers.json").read_text()) == settings


PROMPTS = ("good", "bad")


def test_prompts_are_kept_and_put_before_texts(tmp_path: Path) -> None:
    directory = write_sentence_model(tmp_path / "model")
    config, params = tb.load_hf(directory)
    tokenizer = tb.load_tokenizer(directory, config)
    encoder = {"encoder": params["encoder"]}
    written = tmp_path / "written"
    tb.save_hf(written, config, encoder, tokenizer)
    assert not (written / "config_sentence_transformers.json").exists()
    settings = {"prompts": {"query": "good ", "passage": "bad "}, "default_prompt_name": None}
    write_json(directory / "config_sentence_transformers.json", settings)
    tb.save_hf(written, tb.load_hf(directory)[0], encoder, tokenizer)
    assert json.loads((written / "config_sentence_transformers.json").read_text()) == settings
    predictor = tb.load_predictor(written)
    expected = predictor.embed(["good film", "good plot"])
    np.testing.assert_array_equal(predictor.embed(["film", "plot "], prompt_name="query"), expected)
    with pytest.raises(ValueError, match="has no prompt 'title'; its prompts are 'query', 'passage'"):
        predictor.embed(["film"], prompt_name="title")


REFUSED = {
    "pooling": (
        "1_Pooling/config.json",
        {"pooling_mode_mean_sqrt_len_tokens": True},
        r"1_Pooling/config\.json: pooling 'mean_sqrt_len_tokens' is not supported; supported is one of cls, mean, max",
    ),
    "two poolings": (
        "1_Pooling/config.json",
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
        "pooling 'cls' and 'mean' is not supported",
    ),
    "no pooling": ("1_Pooling/config.json", {}, "pooling of no kind is not supported"),
    "prompt": (
        "1_Pooling/config.json",
        {"pooling_mode_mean_tokens": True, "include_prompt": False},
        "include_prompt false is not supported",
    ),
    "activation": (
        "2_Dense/config.json",
        {"out_features": 10, "activation_function": "torch.nn.modules.activation.ReLU"},
        "activation_function 'ReLU' is not supported; supported are Identity, Tanh",
    ),
    "residual": (
        "2_Dense/config.json",
        {"out_features": 10, "activation_function": IDENTITY, "use_residual": True},
        "use_residual is not supported",
    ),
    "place": (
        "2_Dense/config.json",
        {"out_features": 10, "activation_function": IDENTITY, "module_output_name": "token_embeddings"},
        "module_output_name 'token_embeddings' is not supported; supported is sentence_embedding",
    ),
    "width": ("2_Dense/config.json", {"activation_function": IDENTITY}, "out_features is None; it must be a whole"),
    "module": (
        "modules.json",
        [{"path": "", "type": f"{TYPES}Transformer"}, {"path": "1_CNN", "type": f"{TYPES}CNN"}],
        "module 'CNN' is not supported; supported are Transformer, Pooling, Dense, Normalize",
    ),
    "order": (
        "modules.json",
        [{"path": "", "type": f"{TYPES}Transformer"}, {"path": "2_Normalize", "type": f"{TYPES}Normalize"}],
        "the modules Transformer, Normalize are not supported; .* in this order",
    ),
    "elsewhere": (
        "modules.json",
        [{"path": "0_BERT", "type": f"{TYPES}Transformer"}, {"path": "1_Pooling", "type": f"{TYPES}Pooling"}],
        "only modules in folders beside it are supported",
    ),
    "no list": ("modules.json", {"0": "Transformer"}, r"modules\.json: not a list of modules"),
    "case": ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case is not supported: write false"),
    "prompts": (
        "config_sentence_transformers.json",
        {"prompts": ["query: "]},
        r"config_sentence_transformers\.json: prompts must be an object of names and texts",
    ),
    "default prompt": (
        "config_sentence_transformers.json",
        {"prompts": {"passage": "passage: "}, "default_prompt_name": "query"},
        "default_prompt_name is 'query', and the prompts are 'passage': name one of them, or write null",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_supported_is_named_where_vectors_are_asked_for(case: str, tmp_path: Path) -> None:
    directory = write_sentence_model(tmp_path / "model", width=10)
    file, content, message = REFUSED[case]
    write_json(directory / file, content)
    config, params = tb.load_hf(directory)  # the encoder, or a classifier, is of use without it
    assert config.embedding is None
    with pytest.raises(tb.InputError, match=message):
        check_has_head(str(directory), config, params, "embedding")


def test_a_dense_module_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    directory = write_sentence_model(tmp_path / "model", width=10)
    weights = directory / "2_Dense/model.safetensors"
    save_file({"linear.weight": np.zeros((10, 7), np.float32)}, weights)
    with pytest.raises(
        tb.InputError, match=r"2_Dense: linear\.weight has the shape \(10, 7\).* makes them \(10, 24\)"
    ):
        tb.load_hf(directory)
    save_file({"linear.weight": np.full((10, 24), np.nan, np.float32)}, weights)
    with pytest.raises(tb.InputError, match="2_Dense: holds an infinity or a NaN"):
        tb.load_hf(directory)
    weights.unlink()
    with pytest.raises(tb.InputError, match=r"2_Dense: no model\.safetensors in it"):
        tb.load_hf(directory)
    (directory / "2_Dense/config.json").unlink()
    config, params = tb.load_hf(directory)
    with pytest.raises(tb.InputError, match=r"2_Dense/config\.json: no such file, but modules\.json names its folder"):
        check_has_head(str(directory), config, params, "embedding")


def test_a_plain_encoder_has_no_vectors(tmp_path: Path) -> None:
    config, params = tb.load_hf(TINY)
    with pytest.raises(
        tb.InputError, match=r"holds no modules\.json of sentence-transformers; train one first: tinybert distill"
    ):
        check_has_head(str(TINY), config, params, "embedding")


def test_the_fingerprint_covers_the_modules(tmp_path: Path) -> None:
    directory = write_sentence_model(tmp_path / "model", width=10)
    prints = [fingerprint(TINY), fingerprint(directory)]
    pooling = directory / "1_Pooling/config.json"
    pooling.write_text(pooling.read_text().replace("true", "false"))
    prints.append(fingerprint(directory))
    weights = directory / "2_Dense/model.safetensors"
    save_file({"linear.weight": np.zeros((10, 24), np.float32)}, weights)
    prints.append(fingerprint(directory))
    assert len(set(prints)) == 4


def test_a_row_of_padding_has_a_finite_vector_and_no_gradient(tmp_path: Path) -> None:
    import jax

    for mode in MODES:
        config, params = tb.load_hf(write_sentence_model(tmp_path / mode, mode=mode, width=10))
        ids, mask = inputs_of(config)
        model = HEADS["embedding"].model(config)

        def total(params: Any, model: Any = model, ids: Any = ids, mask: Any = mask) -> jax.Array:
            arrays = jnp.asarray(ids), jnp.asarray(mask * np.array([[1], [0]], np.int32))
            return jnp.sum(model.apply({"params": params}, *arrays).logits[0])

        placed = {name: part for name, part in params.items() if name != "classifier"}
        gradients = jax.jit(jax.grad(total))(jax.tree.map(jnp.asarray, placed))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
