"""Exported models give the outputs of the model, run where it says, and are refused where they differ."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import FEW_MODELS, TINY, distillation, rest_long, write_model
from safetensors.numpy import load_file, save_file

import tinybert_jax as tb
from tinybert_jax.devices.processor import processor
from tinybert_jax.export import export as exporting
from tinybert_jax.export.onnx_model import onnx_model
from tinybert_jax.inference.evaluate import evaluate
from tinybert_jax.inference.exported import exported_file
from tinybert_jax.models.config import ACTIVATIONS
from tinybert_jax.models.files.tensors import head_of
from tinybert_jax.models.heads import HEADS
from tinybert_jax.models.quantized import to_int8
from tinybert_jax.teachers.exported import load_exported

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

FIXTURES = TINY.parent
MODELS = sorted(path.name for path in FIXTURES.glob("tiny-*"))
TOLERANCE = 1e-6  # of the largest output, or of 1 where that is smaller


def inputs_of(config: tb.BertConfig) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Ids of three rows of unlike lengths, and where they are real."""
    random, length = np.random.default_rng(0), min(10, config.max_tokens)
    real = np.arange(length) < np.array([[length], [6], [3]])
    ids = np.where(real, random.integers(2, config.vocab_size, real.shape), config.pad_token_id)
    types = np.where(real & (np.arange(length) > 4) & (config.type_vocab_size > 1), 1, 0)
    named = {"input_ids": ids, "attention_mask": real, "token_type_ids": types}
    return {name: array.astype(np.int64) for name, array in named.items()}, real


def ours(config: tb.BertConfig, params: tb.Batch, inputs: dict[str, np.ndarray]) -> np.ndarray:
    arrays = (array.astype(np.int32) for array in inputs.values())
    return np.asarray(exporting.program(config, params)(params, *map(jax.numpy.asarray, arrays)))


def run_onnx(model: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    named = [output.name for output in session.get_outputs()]
    feed = {put.name: inputs[put.name] for put in session.get_inputs()}
    return dict(zip(named, session.run(named, feed), strict=True))


def joined(outputs: dict[str, np.ndarray]) -> np.ndarray:
    if "start_logits" in outputs:
        return np.stack([outputs["start_logits"], outputs["end_logits"]], axis=-1)
    return outputs["logits"] if "logits" in outputs else outputs["last_hidden_state"]


@pytest.mark.parametrize("name", rest_long(MODELS))
def test_onnx_of_every_family_and_head_is_the_model(name: str) -> None:
    config, params = tb.load_hf(FIXTURES / name)
    inputs, real = inputs_of(config)
    expected = ours(config, params, inputs)
    real = real if expected.ndim == 3 else np.ones(len(expected), bool)
    model = onnx_model(config, params)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}  # standard operators
    difference = np.abs(joined(run_onnx(model, inputs)) - expected)[real].max()
    assert difference <= TOLERANCE * max(1.0, np.abs(expected[real]).max())
    # in int8, which is not bitwise the same on all processors, it is nearly so; on some, sums of 8 bits overflow
    for bits in (7, 8) if processor().int8 else (7,):
        off = joined(run_onnx(onnx_model(config, params, bits), inputs))[real] - expected[real]
        assert np.sqrt(np.mean(np.square(off))) < 0.2 * expected[real].std()


@pytest.mark.parametrize(("name", "tokens"), [("tiny-bert", "first"), ("tiny-bert-token", "all")])
def test_the_last_layer_computes_what_the_head_reads(name: str, tokens: str) -> None:
    config, params = tb.load_hf(FIXTURES / name)
    model, (inputs, _) = onnx_model(config, params), inputs_of(config)
    norms = [node.output[0] for node in model.graph.node if node.op_type == "LayerNormalization"]
    model.graph.output.extend(onnx.ValueInfoProto(name=norm) for norm in norms)
    lengths = [outputs.shape[1] for norm, outputs in run_onnx(model, inputs).items() if norm in norms]
    length = inputs["input_ids"].shape[1]
    assert lengths == [length] * (len(norms) - 2) + [1 if tokens == "first" else length] * 2


def test_the_pooler_of_a_bare_encoder_is_an_output() -> None:
    config, params = tb.load_hf(TINY)
    params = {"encoder": params["encoder"]}
    inputs, _ = inputs_of(config)
    arrays = [jax.numpy.asarray(array.astype(np.int32)) for array in inputs.values()]
    expected = tb.BertModel(config).apply({"params": params["encoder"]}, *arrays)
    outputs = run_onnx(onnx_model(config, params), inputs)
    np.testing.assert_allclose(outputs["pooler_output"], expected.pooled, atol=1e-6)


@pytest.mark.parametrize("activation", rest_long(ACTIVATIONS, ["gelu", "relu"]))
@pytest.mark.parametrize("shape", rest_long([{}, {"head_dim": 3}, {"pad_token_id": 1, "model_type": "roberta"}], [{}]))
def test_every_activation_and_shape_is_written(activation: str, shape: dict[str, Any]) -> None:
    sizes = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16, "max_position_embeddings": 14, "initializer_range": 0.4}
    config = tb.BertConfig(hidden_act=activation, **sizes, **shape)
    params = tb.init_params(tb.BertForSequenceClassification(config), jax.random.key(0))
    inputs, _ = inputs_of(config)
    outputs = run_onnx(onnx_model(config, params), inputs)["logits"]
    np.testing.assert_allclose(outputs, ours(config, params, inputs), atol=2e-6)


def test_integers_are_within_their_range_and_half_a_step() -> None:
    weights = np.random.default_rng(0).normal(size=(40, 7)).astype(np.float32)
    weights[:, 3] = 0.0
    for bits, largest in ((8, 127), (7, 63)):
        integers, scales = to_int8(weights, bits, axis=0)
        assert np.abs(integers.astype(int)).max() == largest
        assert (np.abs(integers * scales - weights) <= scales / 2 + 1e-7).all()


def test_the_word_table_is_stored_once_in_a_masked_lm() -> None:
    config, params = tb.load_hf(FIXTURES / "tiny-bert-mlm")
    for bits in (None, 8):
        sizes = [int(np.prod(tensor.dims)) for tensor in onnx_model(config, params, bits).graph.initializer]
        assert sizes.count(config.vocab_size * config.hidden_size) == 1


@pytest.fixture(scope="module")
def exported(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of reviews in all formats."""
    out = tmp_path_factory.mktemp("exported") / "out"
    results = tb.export_model(str(teacher), out, ("onnx", "onnx-int8", "stablehlo"))
    assert [result.agreement for result in results][::2] == [1.0, 1.0]
    assert [result.file.is_file() for result in results] == [True] * 3
    return out


@pytest.mark.parametrize("file", ["", "onnx/model.onnx", "onnx/model_quantized.onnx", "stablehlo/model.bin"])
def test_a_predictor_and_evaluate_take_every_format(exported: Path, teacher: Path, reviews: Path, file: str) -> None:
    texts = ["we bought lovely chips", "we bought awful chips at the shop"]
    expected, answers = (tb.load_predictor(path)(texts) for path in (teacher, exported / file))
    assert [answer.label for answer in answers] == [answer.label for answer in expected]
    tolerance = 0.1 if file in ("", "onnx/model_quantized.onnx") else 1e-5
    np.testing.assert_allclose([a.value for a in answers], [e.value for e in expected], atol=tolerance)
    scores = evaluate(str(exported / file), "classification", tb.DataSource(data=str(reviews)))
    assert scores["accuracy"] > 0.9


def test_onnxruntime_and_tokenizers_suffice_to_serve(exported: Path, teacher: Path) -> None:
    code = f"""
import sys
import numpy as np, onnxruntime, tokenizers
tokenizer = tokenizers.Tokenizer.from_file({str(exported / "tokenizer.json")!r})
session = onnxruntime.InferenceSession({str(exported / "onnx/model.onnx")!r})
row = tokenizer.encode("we bought lovely chips")
feed = dict(input_ids=[row.ids], attention_mask=[row.attention_mask], token_type_ids=[row.type_ids])
print(session.run(["logits"], {{name: np.array(value, np.int64) for name, value in feed.items()}})[0].argmax())
assert not {{"jax", "transformers", "tinybert_jax"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    label = tb.load_predictor(teacher)(["we bought lovely chips"])[0].label
    assert tb.load_hf(teacher)[0].id2label[int(done.stdout)] == label


def test_the_layout_is_that_of_other_programs(exported: Path) -> None:
    files = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    assert files >= {"config.json", "tokenizer.json", "tokenizer_config.json", "onnx/model.onnx"}
    assert "onnx/model_quantized.onnx" in files
    modes = {oct(path.stat().st_mode & 0o777) for path in exported.rglob("*") if path.is_file()}
    assert len(modes) == 1  # of the umask, also those of safetensors


@pytest.mark.long
def test_an_exported_model_teaches(exported: Path, blank_student: Path, reviews: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"  # as optimum writes it
    shutil.copytree(exported, flat)
    (flat / "onnx/model.onnx").rename(flat / "model.onnx")
    shutil.rmtree(flat / "onnx")
    for teacher, length in ((exported, {"epochs": 8}), (flat, {"max_steps": 1})):
        stages = (tb.Stage("prediction", learning_rate=5e-3, **length),)
        experiment = distillation(teacher, blank_student, reviews, stages=stages)
        result = tb.run(experiment, tmp_path / f"run-{teacher.name}")
        assert result.scores["accuracy"] > 0.85 or teacher is flat
        assert result.teacher_scores is not None
        assert result.teacher_scores["accuracy"] > 0.9


def test_a_program_for_other_shapes_is_refused_in_a_line(exported: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    other = Path(shutil.copytree(exported, tmp_path / "other"))
    model = onnx.load(other / "onnx/model.onnx")
    for put in model.graph.input:
        put.type.tensor_type.shape.dim[0].dim_value = 7
    onnx.save(model, other / "onnx/model.onnx")
    (other / "onnx/model_quantized.onnx").unlink(missing_ok=True)
    with pytest.raises(tb.InputError, match=r"cannot run it on 32 rows of 16 tokens .* with dynamic axes"):
        tb.load_predictor(other / "onnx/model.onnx")(["a bag"])


def test_an_export_may_go_to_the_directory_where_one_is(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    assert tb.export_model(str(teacher), Path("."), ("stablehlo",))[0].file == Path("stablehlo/model.bin")
    assert (tmp_path / "here/config.json").is_file()
    shutil.rmtree(tmp_path / "here")
    (tmp_path / "here").mkdir()
    tb.export_model(str(teacher), tmp_path / "link", ("stablehlo",))
    assert (tmp_path / "link/config.json").is_file()


@pytest.mark.parametrize("stage", ["transformer", "patient"])
def test_an_exported_model_teaches_no_layers(
    exported: Path, blank_student: Path, reviews: Path, stage: str, tmp_path: Path
) -> None:
    experiment = distillation(exported, blank_student, reviews, stages=(tb.Stage(stage),))
    with pytest.raises(tb.InputError, match=f"stage '{stage}' compares layers, and the teacher has none"):
        tb.run(experiment, tmp_path / "run")


def test_what_differs_too_much_is_not_left_behind(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = exporting.FORMATS["onnx-int8"]
    monkeypatch.setitem(exporting.FORMATS, "onnx-int8", row._replace(largest_error=1e-6))
    with pytest.raises(tb.InputError, match=r"as onnx-int8, its outputs are .* at most 1e-06 are allowed; nothing is"):
        tb.export_model(str(teacher), tmp_path / "out", ("onnx", "onnx-int8"))
    assert not list(tmp_path.iterdir())


def test_bad_arguments_are_refused_by_name(teacher: Path, exported: Path, reviews: Path, tmp_path: Path) -> None:
    with pytest.raises(tb.InputError, match="to is 'tflite'"):
        tb.export_model(str(teacher), tmp_path / "out", ("tflite",))
    with pytest.raises(tb.InputError, match="weight_bits is 4; it must be 7 or 8"):
        tb.export_model(str(teacher), tmp_path / "out", weight_bits=4)
    with pytest.raises(tb.InputError, match="exists already; choose another --out"):
        tb.export_model(str(teacher), exported)
    with pytest.raises(tb.InputError, match="holds a BertForSequenceClassification, and no token classifier"):
        tb.load_predictor(exported, head="tokens")
    (tmp_path / "broken").mkdir()
    shutil.copy(exported / "config.json", tmp_path / "broken")
    (tmp_path / "broken/model.onnx").write_bytes(b"no model")
    with pytest.raises(tb.InputError, match=r"model\.onnx: ONNX Runtime cannot load it .* export it again"):
        tb.load_predictor(tmp_path / "broken")


def test_a_missing_package_is_named(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package, message in (
        ("onnxruntime", "pip install onnxruntime"),
        ("onnx", r"in the clone of tinybert_jax, pip install '\.\[onnx\]'"),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            patch.delitem(sys.modules, "tinybert_jax.export.onnx_model", raising=False)
            patch.delitem(sys.modules, "tinybert_jax.export.graph", raising=False)
            with pytest.raises(tb.InputError, match=message):
                tb.export_model(str(teacher), tmp_path / package)
        assert not list(tmp_path.iterdir())  # so the same command may be given again


def test_a_model_of_two_gigabytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["tinybert_jax.export.onnx_model"], "LARGEST", 10_000)
    with pytest.raises(tb.InputError, match="an ONNX file at most 2: take onnx-int8"):
        onnx_model(*tb.load_hf(TINY))


def test_one_text_suffices_to_compare_a_number(tmp_path: Path) -> None:
    config, params = tb.load_hf(TINY)
    config = dataclasses.replace(config, id2label=("score",))
    params["classifier"] = {"kernel": params["classifier"]["kernel"][:, :1], "bias": params["classifier"]["bias"][:1]}
    tb.save_hf(tmp_path / "model", config, params, tb.load_tokenizer(TINY, config))
    (result,) = tb.export_model(str(tmp_path / "model"), tmp_path / "out", texts=["a film"])
    assert result.error < 1e-4


def test_weights_come_before_exports_in_a_directory_of_both(exported: Path, teacher: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "both")
    assert exported_file(tmp_path / "both") is not None
    for weights in ("model.safetensors", "pytorch_model.bin"):
        (tmp_path / "both" / weights).touch()
        assert exported_file(tmp_path / "both") is None
        assert exported_file(tmp_path / "both" / weights) is None
        (tmp_path / "both" / weights).unlink()


def test_of_several_exported_files_the_fastest_runs_and_is_named(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(exported, tmp_path / "some")
    assert exported_file(tmp_path / "some") == (tmp_path / "some/onnx/model_quantized.onnx", tmp_path / "some")
    tb.load_predictor(tmp_path / "some")
    assert "some: holds 3 exported files: onnx/model_quantized.onnx is taken" in capsys.readouterr().err
    tb.load_predictor(tmp_path / "some/onnx/model_quantized.onnx")
    (tmp_path / "some/onnx/model_quantized.onnx").unlink()
    shutil.rmtree(tmp_path / "some/stablehlo")
    tb.load_predictor(tmp_path / "some")
    assert not capsys.readouterr().err


def test_two_programs_of_one_shape_are_two_teachers(
    exported: Path, blank_student: Path, reviews: Path, tmp_path: Path
) -> None:
    """The program of StableHLO is the same for all weights."""
    prints = []
    for name, change in (("one", 0.0), ("two", 0.5)):
        shutil.copytree(exported / "stablehlo", tmp_path / name / "stablehlo")
        for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(exported / file, tmp_path / name)
        path = tmp_path / name / "stablehlo/params.safetensors"
        weights = load_file(path)
        weights["classifier/bias"] += np.float32(change)
        save_file(weights, path)
        prints.append(load_exported(distillation(tmp_path / name, blank_student, reviews)).fingerprint)
    assert prints[0] != prints[1]


@pytest.mark.long
def test_a_model_without_a_head_is_exported(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", hidden_size=16, num_hidden_layers=2, intermediate_size=32)
    (result,) = tb.export_model(str(model), tmp_path / "out")
    assert result.agreement is None
    assert result.error < 1e-5
    assert json.loads((tmp_path / "out/config.json").read_text())["architectures"] == ["BertModel"]


def test_heads_of_the_table_are_all_exported() -> None:
    heads = {head_of(*reversed(tb.load_hf(FIXTURES / name))) for name in FEW_MODELS}
    vectors = {name for name, row in HEADS.items() if row.gives_vectors}  # embedding_test exports those
    assert heads | vectors == set(HEADS)
