"""A model directory that is damaged or does not fit is refused with the reason; a sound one is kept exactly."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import TINY
from safetensors.numpy import load_file, save_file

import tinybert_jax as tb
from tinybert_jax.models.files.tensors import to_hf_tensors


def edit_config(directory: Path, **changes) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(directory: Path, change) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def test_a_saved_copy_keeps_weights_labels_problem_type_and_tokenizer(directory: Path, tmp_path: Path) -> None:
    edit_config(directory, id2label={"0": "no", "1": "maybe", "2": "yes"}, problem_type="single_label_classification")
    config, params = tb.load_hf(directory)
    tb.save_hf(tmp_path / "copy", config, params, tb.load_tokenizer(directory, config))
    again = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert again["id2label"] == {"0": "no", "1": "maybe", "2": "yes"}
    assert again["problem_type"] == "single_label_classification"
    assert again["architectures"] == ["BertForSequenceClassification"]
    before, after = load_file(directory / "model.safetensors"), load_file(tmp_path / "copy" / "model.safetensors")
    assert {name: t.tobytes() for name, t in before.items()} == {name: t.tobytes() for name, t in after.items()}
    text = "the quick brown fox"
    assert tb.load_tokenizer(tmp_path / "copy", config)(text) == tb.load_tokenizer(directory, config)(text)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_every_file_of_a_saved_model_has_the_mode_that_the_umask_gives(
    umask: int, directory: Path, tmp_path: Path
) -> None:
    config, params = tb.load_hf(directory)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "model.safetensors.tmp").touch(0o600)  # of a save that was killed
    before = os.umask(umask)
    try:
        tb.save_hf(tmp_path / "copy", config, params, tb.load_tokenizer(directory, config))
    finally:
        os.umask(before)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (tmp_path / "copy").iterdir()}
    assert modes == dict.fromkeys(modes, oct(0o666 & ~umask))
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= modes.keys()


def test_sharded_safetensors_are_read_like_one_file(directory: Path) -> None:
    _, whole = tb.load_hf(directory)
    tensors = load_file(directory / "model.safetensors")
    names = sorted(tensors)
    shards = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for file, shard_names in shards.items():
        save_file({name: tensors[name] for name in shard_names}, directory / file)
    (directory / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, shard_names in shards.items() for name in shard_names}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    config, sharded = tb.load_hf(directory)
    read, expected = to_hf_tensors(sharded, config), to_hf_tensors(whole, config)
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(read[name], tensor)
    (directory / "b.safetensors").unlink()
    with pytest.raises(tb.InputError, match=r"b\.safetensors: no such file, but the index names it"):
        tb.load_hf(directory)


def test_tensorflow_names_of_layer_norm_are_understood(directory: Path) -> None:
    _, expected = tb.load_hf(directory)

    def rename(tensors) -> None:
        for name in [name for name in tensors if "LayerNorm" in name]:
            tensors[name.replace("weight", "gamma").replace("bias", "beta")] = tensors.pop(name)

    edit_tensors(directory, rename)
    config, params = tb.load_hf(directory)
    for name, tensor in to_hf_tensors(expected, config).items():
        np.testing.assert_array_equal(to_hf_tensors(params, config)[name], tensor)


def add_projections(tensors, version: int, width: int = 24, states: int = 4) -> None:
    """What the original code's `TinyBertForPreTraining` saves beside BERT's own, for a teacher that is 40 wide."""
    random = np.random.default_rng(0)
    names = ["fit_dense"] if version == 1 else [f"fit_denses.{i}" for i in range(states)]
    for name in names:
        tensors[f"{name}.weight"] = random.normal(size=(40, width)).astype(np.float32)
        tensors[f"{name}.bias"] = random.normal(size=40).astype(np.float32)


@pytest.mark.parametrize("taken", ["model.safetensors.tmp", "tokenizer.json"])
def test_what_cannot_be_written_is_an_os_error_whichever_library_writes_it(
    directory: Path, tmp_path: Path, taken: str
) -> None:
    config, params = tb.load_hf(directory)
    tokenizer = tb.load_tokenizer(directory, config)
    (tmp_path / "copy" / taken).mkdir(parents=True)
    with pytest.raises(OSError, match=str(tmp_path / "copy")):
        tb.save_hf(tmp_path / "copy", config, params, tokenizer)


@pytest.mark.parametrize(("version", "leaf", "stack"), [(1, "fit_dense", ()), (2, "fit_denses", (4,))])
def test_projections_of_an_original_tinybert_make_the_round_trip(
    directory: Path, tmp_path: Path, version: int, leaf: str, stack: tuple[int, ...]
) -> None:
    edit_tensors(directory, lambda tensors: add_projections(tensors, version))
    config, params = tb.load_hf(directory)
    assert params[leaf]["kernel"].shape == (*stack, 24, 40)
    assert params[leaf]["bias"].shape == (*stack, 40)
    tb.save_hf(tmp_path / "copy", config, params)
    before, after = load_file(directory / "model.safetensors"), load_file(tmp_path / "copy" / "model.safetensors")
    assert {name: t.tobytes() for name, t in before.items()} == {name: t.tobytes() for name, t in after.items()}


@pytest.mark.parametrize("architectures", [None, ["TinyBertForSequenceClassification"], ["BertForMaskedLM"]])
@pytest.mark.parametrize("version", [1, 2])
def test_a_classifier_of_the_authors_code_is_left_out(
    directory: Path, capsys: pytest.CaptureFixture, version: int, architectures: list[str] | None
) -> None:
    """`TinyBertForSequenceClassification` puts a ReLU before it, which no config tells."""
    edit_tensors(directory, lambda tensors: add_projections(tensors, version))
    assert "classifier" in tb.load_hf(directory)[1], "one of ours, which goes on with its projections"
    edit_config(directory, architectures=architectures)
    assert "classifier" not in tb.load_hf(directory)[1]
    assert f"note: {directory}: its classifier is left out: that of TinyBERT's authors" in capsys.readouterr().err
    with pytest.raises(tb.InputError, match="holds no sequence classifier; train one first"):
        tb.load_predictor(directory)


def test_a_tinybert_as_pretrained_is_read_with_all_its_heads(tmp_path: Path) -> None:
    """`TinyBertForPreTraining`: both heads of pretraining, a pooler, TensorFlow names, a projection per state."""
    directory = Path(shutil.copytree(TINY.parent / "tiny-bert-mlm", tmp_path / "bert"))

    def complete(tensors) -> None:
        random = np.random.default_rng(1)
        for name, shape in (("bert.pooler.dense", (8, 8)), ("cls.seq_relationship", (2, 8))):
            tensors[f"{name}.weight"] = random.normal(size=shape).astype(np.float32)
            tensors[f"{name}.bias"] = random.normal(size=shape[0]).astype(np.float32)
        for name in [name for name in tensors if "LayerNorm" in name]:
            tensors[name.replace("weight", "gamma").replace("bias", "beta")] = tensors.pop(name)
        add_projections(tensors, 2, width=8, states=3)

    edit_tensors(directory, complete)
    _, params = tb.load_hf(directory)
    assert set(params) == {"encoder", "cls", "fit_denses"}
    assert {"seq_relationship", "predictions"} == set(params["cls"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("fit_denses.2.bias"), "hold 3 of 4 projections' bias; missing: projection 2"),
        (lambda t: t.update({"fit_denses.4.bias": np.zeros(40, np.float32)}), "hold 5 projections' bias$"),
        (lambda t: t.update({"fit_denses.1.bias": np.zeros(41, np.float32)}), "fit_denses/bias are not all of one"),
        (lambda t: add_projections(t, 1), "2 tensors that no BERT has: 'fit_dense.bias', 'fit_dense.weight'"),
        (
            lambda t: [t.pop(f"fit_denses.{i}.bias") for i in range(4)],
            "1 of 27 tensors are missing: fit_denses.0.bias",
        ),
        (
            lambda t: t.update({f"fit_denses.{i}.weight": np.zeros((40, 23), np.float32) for i in range(4)}),
            r"'fit_denses\.[0-3]\.weight' has the shape \(40, 23\); config.json makes it \(40, 24\): take the config",
        ),
    ],
    ids=["missing", "too many", "uneven", "both versions", "no bias", "width"],
)
def test_projections_that_do_not_fit_are_refused(directory: Path, change, message: str) -> None:
    edit_tensors(directory, lambda tensors: add_projections(tensors, 2))
    edit_tensors(directory, change)
    with pytest.raises(tb.InputError, match=message):
        tb.load_hf(directory)


def drop_layer(tensors) -> None:
    for name in [name for name in tensors if ".layer.1." in name]:
        del tensors[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("classifier.bias"), "1 of 25 tensors are missing: classifier.bias"),
        (lambda t: t.update({"bert.extra": np.zeros(3, np.float32)}), "1 tensors that no BERT has: 'bert.extra'"),
        (
            lambda t: t.update({"classifier.bias": np.zeros(5, np.float32)}),
            r"'classifier\.bias' has the shape \(5,\); config.json makes it \(3,\): it names 3 labels, and the model"
            " has 5: write so many into its id2label",
        ),
        (
            lambda t: t.update(
                {"bert.encoder.layer.2.intermediate.dense.weight": np.zeros((40, 24), np.float32)}
                | {f"bert.encoder.layer.{i}.intermediate.dense.weight": np.zeros((40, 24), np.float32) for i in (0, 1)}
            ),
            r"\.[0-2]\.intermediate\.dense\.weight' has the shape \(40, 24\); config.json makes it \(48, 24\): take",
        ),
        (
            lambda t: t.update({"bert.encoder.layer.1.output.dense.bias": np.zeros(5, np.float32)}),
            "the layers' tensors of encoder/encoder/layer/output/dense/bias are not all of one shape",
        ),
        (drop_layer, "config.json says 3 layers, but the weights hold 2 of .*; missing: layer 1"),
    ],
    ids=["missing", "surplus", "labels", "shape", "uneven layers", "layer"],
)
def test_weights_that_do_not_match_the_config_are_refused(directory: Path, change, message: str) -> None:
    edit_tensors(directory, change)
    with pytest.raises(tb.InputError, match=message):
        tb.load_hf(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 5}, r"config\.json: num_attention_heads 5 does not divide hidden_size 24"),
        (
            {"vocab_size": 90},
            r"\.word_embeddings\.weight' has the shape \(99, 24\); config.json makes it \(90, 24\)",
        ),
        ({"model_type": "xlnet"}, r"config\.json: model_type 'xlnet' is not supported; known are 'bert', 'albert'"),
        ({"hidden_size": "wide"}, r"config\.json: hidden_size is 'wide'; it must be a whole number"),
        (
            {"num_hidden_layers": 10**9},
            "says 1000000000 layers, .* of 1000000000 .*; missing: layer 3, 4, 5 \\.\\.\\.",
        ),
    ],
)
def test_configs_that_do_not_fit_are_refused(directory: Path, change: dict, message: str) -> None:
    edit_config(directory, **change)
    with pytest.raises(tb.InputError, match=message):
        tb.load_hf(directory)


DENSE = "bert.encoder.layer.{}.output.dense.bias"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (DENSE.format("\u00b2"), "1 tensors that no BERT has"),  # a digit to Python, and no number
        (DENSE.format("00"), "1 tensors that no BERT has"),  # another layer 0
        (DENSE.format("9" * 5000), "1 tensors that no BERT has"),
        ("classifier.kernel", "hold 'classifier.kernel', which no BERT has"),  # what we call it
        ("bert.embeddings.LayerNorm.beta", "LayerNorm.beta' and '.*LayerNorm.bias' are the same tensor: keep one"),
        ("bert.two\nlines", r"1 tensors that no BERT has: 'bert.two\\nlines'$"),
    ],
)
def test_a_tensor_under_an_odd_name_replaces_no_other(directory: Path, name: str, message: str) -> None:
    edit_tensors(directory, lambda tensors: tensors.update({name: np.zeros(24, np.float32)}))
    with pytest.raises(tb.InputError, match=message):
        tb.load_hf(directory)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros(3, np.int64), "'classifier.bias' is of the type int64: save the model in float32"),
        (np.zeros(3, np.complex64), "'classifier.bias' is of the type complex64"),
        (np.array([0, np.nan, 0], np.float32), "'classifier.bias' holds an infinity or a NaN"),
        (np.array([0, 1e300, 0]), "'classifier.bias' holds an infinity or a NaN"),  # in float32
        (np.array(0, np.float32), r"'classifier\.bias' has the shape \(\)"),
    ],
)
def test_what_is_no_vector_of_numbers_is_refused(directory: Path, value: np.ndarray, message: str) -> None:
    edit_tensors(directory, lambda tensors: tensors.update({"classifier.bias": value}))
    with pytest.raises(tb.InputError, match=message):
        tb.load_hf(directory)


def test_projections_without_axes_are_refused(directory: Path) -> None:
    zero = np.array(0, np.float32)
    edit_tensors(directory, lambda tensors: tensors.update({"fit_dense.weight": zero, "fit_dense.bias": zero}))
    with pytest.raises(tb.InputError, match=r"'fit_dense\.weight' has the shape \(\)"):
        tb.load_hf(directory)


def test_numbers_of_eight_bits_are_refused(directory: Path) -> None:
    header = b'{"x": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}'
    (directory / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(
        tb.InputError, match=r"model\.safetensors: holds numbers that numpy has not .*: save the model in"
    ):
        tb.load_hf(directory)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "not an index of weights"),
        ('{"weight_map": {"a": 1}}', "not an index of weights"),
        ('{"weight_map": {"a": "../b.safetensors"}}', r"names '\.\./b\.safetensors', which is no file beside it"),
        ('{"weight_map": {"a": ".."}}', "no such file, but the index names it"),
        ('{"weight_map": {"a": "whole", "b": "whole too"}}', "whole too: holds '.*', as a file before it does"),
        ('{"weight_map": {}}', "the weights hold no layer; config.json says 3"),
    ],
)
def test_an_index_that_names_no_shards_is_refused(directory: Path, content: str, message: str) -> None:
    shutil.copy(directory / "model.safetensors", directory / "whole too")
    (directory / "model.safetensors").rename(directory / "whole")
    (directory / "model.safetensors.index.json").write_text(content)
    with pytest.raises(tb.InputError, match=message):
        tb.load_hf(directory)


@pytest.mark.parametrize(
    ("original", "copy"),
    [
        ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
        ("cls.predictions.bias", "cls.predictions.decoder.bias"),
    ],
)
def test_what_a_masked_lm_shares_may_have_either_name(original: str, copy: str, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(TINY.parent / "tiny-bert-mlm", tmp_path / "bert"))
    _, expected = tb.load_hf(directory)
    edit_tensors(directory, lambda tensors: tensors.update({copy: tensors.pop(original)}))
    _, params = tb.load_hf(directory)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_a_run_is_told_from_its_model(directory: Path, tmp_path: Path) -> None:
    shutil.copytree(directory, tmp_path / "run" / "student")
    with pytest.raises(tb.InputError, match=r"model directory\? no, a run's: its model is .*/student$"):
        tb.load_hf(tmp_path / "run")


@pytest.mark.parametrize("below", ["checkpoint-500", "snapshots/0f1e"])
def test_a_directory_above_a_model_names_the_model(below: str, directory: Path, tmp_path: Path) -> None:
    shutil.copytree(directory, tmp_path / "above" / below)
    (tmp_path / "above" / "1_Pooling").mkdir()
    (tmp_path / "above" / "1_Pooling" / "config.json").write_text("{}")
    with pytest.raises(tb.InputError, match=rf"\? no, but there are models in it: {below}: name one of them$"):
        tb.load_hf(tmp_path / "above")


@pytest.mark.parametrize("has_config", [True, False])
def test_an_adapter_alone_is_no_model(has_config: bool, directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "adapter_model.safetensors")
    (directory / "config.json").rename(directory / ("config.json" if has_config else "other.json"))
    (directory / "adapter_config.json").write_text("{}")
    with pytest.raises(tb.InputError, match=r"an adapter of PEFT alone: merge it into its model by merge_and_unload"):
        tb.load_hf(directory)


def test_a_checkpoint_of_tensorflow_is_named(directory: Path) -> None:
    (directory / "config.json").rename(directory / "bert_config.json")
    (directory / "model.safetensors").rename(directory / "bert_model.ckpt.data-00000-of-00001")
    with pytest.raises(tb.InputError, match=r"no, a checkpoint of TensorFlow: convert it"):
        tb.load_hf(directory)
    shutil.copy(TINY / "model.safetensors", directory)
    with pytest.raises(tb.InputError, match=r"an old one: rename its bert_config.json to config.json$"):
        tb.load_hf(directory)


def test_labels_that_are_named_by_label2id_alone_are_read(directory: Path) -> None:
    edit_config(directory, id2label=None, label2id={"positive": 2, "negative": 0, "neutral": 1})
    assert tb.load_hf(directory)[0].id2label == ("negative", "neutral", "positive")


def test_truncated_safetensors_are_refused(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(tb.InputError, match=r"model\.safetensors: damaged or truncated"):
        tb.load_hf(directory)


@pytest.mark.parametrize(("file", "message"), [("config.json", "no such file"), ("model.safetensors", "no model.saf")])
def test_missing_files_are_named(directory: Path, file: str, message: str) -> None:
    (directory / file).unlink()
    with pytest.raises(tb.InputError, match=message):
        tb.load_hf(directory)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{\n", r":2: not JSON \(.*\): copy the model's own file"),
        ("[" * 100_000, r":1: not JSON \(.*\): copy the model's own file"),
        ("[]", ":1: no JSON object: copy the model's own file"),
    ],
)
def test_broken_config_json_is_named(directory: Path, content: str, message: str) -> None:
    (directory / "config.json").write_text(content)
    with pytest.raises(tb.InputError, match=r"config\.json" + message):
        tb.load_hf(directory)


def test_a_token_classifier_that_was_saved_with_a_pooler_is_a_token_classifier(
    directory: Path, tmp_path: Path
) -> None:
    assert "pooler" in tb.load_hf(directory)[1]["encoder"]
    edit_config(directory, architectures=["BertForTokenClassification"])
    config, params = tb.load_hf(directory)
    tb.save_hf(tmp_path / "copy", config, params, tb.load_tokenizer(directory, config))
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["architectures"] == [
        "BertForTokenClassification"
    ]
    assert tb.load_predictor(tmp_path / "copy", head="tokens").head == "tokens"
