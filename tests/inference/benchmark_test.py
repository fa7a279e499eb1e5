"""A benchmark times every program that runs a model here, on the same rows, and says what it leaves out."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import TINY, write_model
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import tinybert_jax as tb
from tinybert_jax.inference import benchmark as module
from tinybert_jax.inference import runners
from tinybert_jax.inference.benchmark import Shape, Side
from tinybert_jax.inference.timing import random_batch
from tinybert_jax.models.files.tokenizer import load_tokenizer
from tinybert_jax.models.heads import HEADS

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

TEXTS = [("the film is good",), ("bad",), ("a very fine plot and the film was not dull",)]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short turns, and int8 is timed on every processor."""
    monkeypatch.setattr(module, "SECONDS", 0.0)
    monkeypatch.setattr(module, "TURNS", 2)
    monkeypatch.setattr("tinybert_jax.inference.timing.PAUSE", 0.0)
    monkeypatch.setattr(module, "busy_share", lambda: 0.0)  # it takes a second
    monkeypatch.setattr(module, "int8_is_faster", lambda: True)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "out"
    tb.export_model(str(TINY), out, ("onnx", "onnx-int8", "stablehlo"))
    return out


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """As if these packages were not installed."""
    is_installed = module.is_installed
    monkeypatch.setattr(module, "is_installed", lambda name: name not in packages and is_installed(name))


@pytest.mark.long
def test_every_program_is_timed_with_every_shape(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "torch")
    result = tb.benchmark([str(TINY), str(exported)], (1, 3), (8, 12), TEXTS, measure_memory=False)
    files = [exported / name for name in ("onnx/model.onnx", "onnx/model_quantized.onnx", "stablehlo/model.bin")]
    programs = ("ONNX Runtime", "ONNX Runtime", "StableHLO")
    assert [row.side for row in result.measured] == [
        *(Side(str(TINY), by) for by in ("JAX", "JAX, int8")),
        *(Side(str(file), by) for file, by in zip(files, programs, strict=True)),
    ]
    shapes = [Shape(size, length) for length in (8, 12, None) for size in (1, 3)]
    for row in result.measured:
        assert [latency.shape for latency in row.latencies] == shapes
        assert min(latency.median for latency in row.latencies) > 0
        assert [latency.calls for latency in row.latencies] == [4, 4, 4, 4, 6, 4]
        assert {latency.p95 for latency in row.latencies} == {None}, "so few calls have no slowest 5 %"
        assert row.memory is None
    with safe_open(TINY / "model.safetensors", "numpy") as tensors:
        count = sum(tensors.get_tensor(name).size for name in tensors.keys())  # noqa: SIM118
    assert [row.parameters for row in result.measured] == [count, count, None, None, count]
    parameters = (exported / "stablehlo/params.safetensors").stat().st_size
    sizes = [file.stat().st_size for file in (TINY / "model.safetensors", TINY / "model.safetensors", *files)]
    assert [row.bytes for row in result.measured] == [*sizes[:-1], sizes[-1] + parameters]
    assert result.notes == ["torch: not timed, as torch is not installed"]
    assert result.machine.versions.keys() == {"jax", "onnxruntime"}


def test_the_slowest_calls_are_told_where_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "torch")
    monkeypatch.setattr(module, "LEAST_CALLS", 10)
    for row in tb.benchmark([str(TINY)], (1,), (8,), measure_memory=False).measured:
        [latency] = row.latencies
        assert latency.p95 >= latency.median > 0


def test_each_program_gets_the_rows_padded_as_it_needs_them() -> None:
    loaded = runners.RUNNERS["JAX"].load(str(TINY))._replace(max_length=40)
    ours, trimmed = (module._batches(by, loaded, Shape(2, None), TEXTS) for by in ("JAX", "ONNX Runtime"))
    assert len(TEXTS) == 3
    lengths = sorted(len(row) for row in loaded.tokenizer([text for (text,) in [*TEXTS, TEXTS[0]]])["input_ids"])
    assert [batch.input_ids.shape for batch in trimmed] == [(2, lengths[1]), (2, lengths[3])], "the first text again"
    assert [len(batch.input_ids) for batch in ours] == [2, 2]
    for mine, other in zip(ours, trimmed, strict=True):
        rows, longest = other.input_ids.shape
        np.testing.assert_array_equal(mine.input_ids[:rows, :longest], other.input_ids)
        assert mine.attention_mask.sum() == other.attention_mask.sum()
        assert mine.input_ids.shape[1] in (8, 16, 24, 32, 40)


def test_all_programs_compute_the_same(exported: Path) -> None:
    batch = random_batch(3, 9, 99, shortest=4)
    parts = [part for model in (str(TINY), str(exported)) for part in runners.parts_of(model)]
    parts = [(name, by) for name, by in parts if module.is_installed(runners.RUNNERS[by].package)]
    first, *others = (runners.RUNNERS[by].load(name).run(batch) for name, by in parts)
    for (name, by), logits in zip(parts[1:], others, strict=True):
        atol = 0.3 * first.std() if "int8" in by or "quantized" in name else 1e-4
        np.testing.assert_allclose(logits, first, atol=atol, err_msg=f"{name} {by}")


def test_a_directory_of_the_hub_may_hold_weights_and_exported_files(directory: Path, exported: Path) -> None:
    shutil.copytree(exported / "onnx", directory / "onnx")
    words = [by for _, by in runners.parts_of(str(directory))]
    assert words == ["JAX", "JAX, int8", "torch", "ONNX Runtime", "ONNX Runtime"]
    file = directory / "onnx/model.onnx"
    assert runners.parts_of(str(file)) == [(str(file), "ONNX Runtime")]


def test_torch_does_not_time_what_transformers_fills_with_random_numbers(directory: Path) -> None:
    pytest.importorskip("torch")
    tensors = load_file(directory / "model.safetensors")
    del tensors["classifier.bias"]
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(runners.CannotRun, match=r"transformers does not find its classifier\.bias"):
        runners.RUNNERS["torch"].load(str(directory))


def test_pairs_need_no_token_types_where_the_tokenizer_writes_none(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}
    encoder = write_model(tmp_path / "encoder", family="roberta", **sizes)
    config, _ = tb.load_hf(encoder)
    params = tb.init_params(HEADS["sequence"].model(config), jax.random.key(0))
    tb.save_hf(tmp_path / "roberta", config, params, load_tokenizer(encoder, config))
    measured = tb.benchmark([str(tmp_path / "roberta")], (1,), (), [("good", "bad")], measure_memory=False)
    assert {row.latencies[0].shape for row in measured.measured} == {Shape(1, None)}


def test_a_file_for_one_shape_is_timed_with_that_one(exported: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(exported, tmp_path / "other"))
    model = onnx.load(other / "onnx/model.onnx")
    for put in model.graph.input:
        put.type.tensor_type.shape.dim[1].dim_value = 8
    onnx.save(model, other / "onnx/model.onnx")
    file = str(other / "onnx/model.onnx")
    result = tb.benchmark([file], (1,), (8, 12), measure_memory=False)
    assert [latency.shape.tokens for row in result.measured for latency in row.latencies] == [8]
    [note] = result.notes
    assert note.startswith(f"{file}: not timed with 1 text of 12 tokens in ONNX Runtime (")


@pytest.mark.long
@pytest.mark.skipif(module.memory() is None, reason="this system has no /proc")
def test_memory_is_that_of_a_process_with_the_model_alone(exported: Path) -> None:
    notes: dict[str, None] = {}
    held = np.ones(300_000_000, np.uint8)  # which the other process does not have
    grown = module._grown_alone(Side(str(exported / "onnx/model.onnx"), "ONNX Runtime"), 1, 8, notes)
    del held
    assert 0 < grown < 200
    assert not notes
    assert module._grown_alone(Side(str(exported / "gone"), "JAX"), 1, 8, notes) is None
    [note] = notes
    assert f"{exported / 'gone'}: memory not measured in JAX (" in note
    assert "no such directory" in note


@pytest.mark.parametrize(
    ("models", "batch_sizes", "lengths", "message"),
    [
        (["no/such"], (1,), (8,), "no/such: no such directory"),
        ([], (1,), (8,), "nothing to time: give a model"),
        ([str(TINY)], (1,), (), "nothing to time: give a model"),
        ([str(TINY)], (0,), (32, 128), "batch sizes are 0 and lengths 32, 128; they must be at least 1 and 8"),
        ([str(TINY)], (1,), (7,), "batch sizes are 1 and lengths 7; "),
        ([str(TINY)], (1,), (8, 41), f"{TINY}: has 40 positions, fewer than max_length 41"),
    ],
)
def test_what_makes_no_sense_is_refused(
    models: list[str], batch_sizes: tuple[int, ...], lengths: tuple[int, ...], message: str
) -> None:
    with pytest.raises(tb.InputError) as refused:
        tb.benchmark(models, batch_sizes, lengths, measure_memory=False)
    assert message in str(refused.value)


def test_a_model_without_a_head_and_one_that_nothing_here_runs_are_refused(
    pretrained: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(tb.InputError, match="holds no sequence classifier; train one first"):
        tb.benchmark([str(pretrained)], (1,), (8,), measure_memory=False)
    with pytest.raises(tb.InputError, match="has 40 positions, fewer than max_length 41"):
        tb.benchmark([str(exported)], (1,), (41,), measure_memory=False)
    without(monkeypatch, "onnxruntime")
    with pytest.raises(tb.InputError, match="nothing to time: ONNX Runtime: not timed, as onnxruntime is not inst"):
        tb.benchmark([str(exported / "onnx/model.onnx")], (1,), (8,), measure_memory=False)
