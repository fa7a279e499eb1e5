"""Exported models as a predict step: ONNX files, also those that other programs wrote, and StableHLO programs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from safetensors.numpy import load_file

from tinybert_jax.batch import Batch, Params
from tinybert_jax.errors import InputError, first_line
from tinybert_jax.models.files.weights import weights_files

VECTORS = "sentence_embedding"  # optimum's name of the output with a vector for each text
ONNX = "onnx/model.onnx"
ONNX_INT8 = "onnx/model_quantized.onnx"
STABLEHLO = "stablehlo/model.bin"
STABLEHLO_INT8 = "stablehlo_int8/model.bin"
STABLEHLO_PARAMS = "params.safetensors"  # beside the program; names are paths joined by "/"
# the places where other programs write them too; optimum also writes to the top directory
FILES = (ONNX, ONNX_INT8, "model.onnx", "model_quantized.onnx", STABLEHLO, STABLEHLO_INT8)
ProgramStep = Callable[[Params, Batch], Any]  # the parameters are ignored: the program has its own


def exported_file(name: str | Path) -> tuple[Path, Path] | None:
    """The file of an exported model, and the directory of its config and tokenizer.

    `name` is the file, or a directory that has one of FILES and no weights. If it has several, ONNX in int8 is chosen,
    the fastest, or else the first of FILES.

    Returns:
        The file and the directory; None if the name is a Hugging Face directory, a hub id, or does not exist.
    """
    path = Path(os.path.expanduser(name))
    try:
        if path.is_file() and (path.suffix == ".onnx" or (path.parent / STABLEHLO_PARAMS).is_file()):
            folder = path.parent
            return path, folder if (folder / "config.json").is_file() else folder.parent
        if not path.is_dir() or any(path.glob("*.safetensors")) or weights_files(path):
            return None
    except OSError:  # a name that is too long
        return None
    files = exported_files(path)
    return (min(files, key=lambda file: not is_int8(file.name)), path) if files else None


def is_int8(name: str) -> bool:
    """Whether an exported file is in int8, by its name."""
    return "quantized" in name or "int8" in name


def exported_files(directory: Path) -> list[Path]:
    """The FILES that exist in a directory."""
    return [directory / file for file in FILES if (directory / file).is_file()]


def program_files(file: Path) -> list[Path]:
    """The file of an exported model, and the files of its weights beside it."""
    if file.suffix == ".onnx":
        return [file, *sorted(file.parent.glob(f"{file.name}[._]data*"))]
    return [file, file.parent / STABLEHLO_PARAMS]


def load_step(file: Path) -> ProgramStep:
    """The function `(params, batch) -> outputs` of an exported model: logits or vectors, or states without a head.

    Raises:
        InputError: the file cannot be read or needs other inputs than a BERT's, or the package that runs it is not
            installed.
    """
    return _onnx_step(file) if file.suffix == ".onnx" else _stablehlo_step(file)


def _onnx_step(file: Path) -> ProgramStep:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise InputError(f"{file}: is run by onnxruntime: pip install onnxruntime") from None
    try:
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common class
        raise InputError(f"{file}: ONNX Runtime cannot load it ({first_line(error)}): export it again") from None
    types = {put.name: np.int32 if put.type == "tensor(int32)" else np.int64 for put in session.get_inputs()}
    if unknown := set(types) - {"input_ids", "attention_mask", "token_type_ids"}:
        raise InputError(f"{file}: asks for the inputs {', '.join(sorted(unknown))}, which no BERT has")
    named = [put.name for put in session.get_outputs()]

    def step(params: Params, batch: Batch) -> np.ndarray:
        feed = {name: np.asarray(getattr(batch, name), dtype) for name, dtype in types.items()}
        try:
            results = session.run(named, feed)
        except Exception as error:
            rows, tokens = batch.input_ids.shape
            raise InputError(
                f"{file}: ONNX Runtime cannot run it on {rows} rows of {tokens} tokens ({first_line(error)}): export"
                " it for any number of both, with dynamic axes"
            ) from None
        outputs = dict(zip(named, results, strict=True))
        if "start_logits" in outputs:
            return np.stack([outputs["start_logits"], outputs["end_logits"]], axis=-1)
        return outputs[next((name for name in ("logits", VECTORS) if name in outputs), named[0])]

    return step


def _stablehlo_step(file: Path) -> ProgramStep:
    try:
        program = jax.export.deserialize(bytearray(file.read_bytes()))
        flat = load_file(file.parent / STABLEHLO_PARAMS)
    except Exception as error:
        raise InputError(f"{file}: cannot be read ({first_line(error)}): export it again") from None
    params = jax.device_put(
        traverse_util.unflatten_dict({tuple(name.split("/")): leaf for name, leaf in flat.items()})
    )
    call = jax.jit(program.call)
    return lambda _, batch: call(params, batch.input_ids, batch.attention_mask, batch.token_type_ids)
