"""The programs that can run a model here: JAX and, if installed, ONNX Runtime and PyTorch."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open

from tinybert_jax.batch import Batch
from tinybert_jax.errors import first_line
from tinybert_jax.inference.exported import STABLEHLO_PARAMS, exported_file, exported_files, program_files
from tinybert_jax.inference.predictor import load_predictor
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.files.directory import load_architectures, load_config, parameter_bytes
from tinybert_jax.models.files.hub import resolve
from tinybert_jax.models.files.tokenizer import load_tokenizer, trained_length
from tinybert_jax.models.fit import names_head
from tinybert_jax.models.heads import HEADS
from tinybert_jax.models.parameters import count_parameters

TOKENIZERS = ("transformers:AutoTokenizer", "transformers:PreTrainedTokenizerFast")


class Loaded(NamedTuple):
    """A model that is loaded in a program."""

    config: BertConfig
    tokenizer: Any
    max_length: int  # that of its training, in tokens
    run: Callable[[Batch], Any]  # -> logits; it waits until they are computed
    bytes: int  # of the files with its parameters
    parameters: int | None  # number of parameters; None: unknown


class Runner(NamedTuple):
    """A row of the table of programs."""

    load: Callable[[str], Loaded]
    package: str  # the package that must be installed
    any_length: bool = False  # False: compiled for some lengths, to which shorter texts are padded
    int8_of: str | None = None  # the program of which it is the int8 form; it is left out if it is not faster here
    imports: tuple[str, ...] = TOKENIZERS  # its further imports, MODULE:NAME


class CannotRun(Exception):
    """A program cannot run a model. The message says why."""


def _load_ours(name: str, int8: bool = False) -> Loaded:
    predictor = load_predictor(name, int8=int8)
    parts = exported_file(name)
    if parts is not None:
        parameters = _count_in(parts[0])
        size = sum(file.stat().st_size for file in program_files(parts[0]))
    else:
        size = parameter_bytes(resolve(name))
        # the scales of int8 are not parameters of the model
        parameters = count_parameters(_without_scales(predictor.params))

    def run(batch: Batch) -> np.ndarray:
        return np.asarray(predictor.step(predictor.params, batch))

    return Loaded(predictor.config, predictor.tokenizer, predictor.max_length, run, size, parameters)


def _without_scales(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    return {name: _without_scales(part) for name, part in tree.items() if not name.endswith("_scale")}


def _count_in(file: Path) -> int | None:
    """The number of parameters of a StableHLO program. In ONNX files, other constants cannot be told apart."""
    if file.suffix == ".onnx":
        return None
    with safe_open(file.parent / STABLEHLO_PARAMS, "numpy") as tensors:
        names = [name for name in tensors.keys() if not name.endswith("_scale")]  # noqa: SIM118
        return sum(int(np.prod(tensors.get_slice(name).get_shape())) for name in names)


def _load_torch(name: str) -> Loaded:
    import torch
    import transformers
    from transformers.utils import logging

    path = resolve(name)
    config, architectures = load_config(path), load_architectures(path)
    heads = [head for head, row in HEADS.items() if row.on_tasks and names_head(config, architectures, head)]
    if heads and HEADS[heads[0]].gives_vectors:
        raise CannotRun("sentence-transformers runs its modules")
    if not heads:
        raise CannotRun(f"its config.json names the architectures {', '.join(architectures) or '(none)'}")
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        kind = getattr(transformers, f"AutoModel{HEADS[heads[0]].architecture}")
        model, report = kind.from_pretrained(
            path, local_files_only=True, trust_remote_code=False, output_loading_info=True, dtype=torch.float32
        )
    except Exception as error:  # its errors have no common class
        raise CannotRun(f"transformers cannot load it ({first_line(error)})") from None
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    if report["missing_keys"]:
        raise CannotRun(f"transformers does not find its {min(report['missing_keys'])}")
    model.eval()
    taken = inspect.signature(model.forward).parameters
    inputs = [field for field in Batch._fields[:3] if field in taken]

    @torch.inference_mode()
    def run(batch: Batch) -> np.ndarray:
        output = model(**{field: torch.as_tensor(getattr(batch, field)).long() for field in inputs})
        if "start_logits" in output:
            return torch.stack([output.start_logits, output.end_logits], -1).numpy()
        return output.logits.numpy()

    tokenizer: Any = load_tokenizer(path, config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    length = trained_length(tokenizer, config)
    return Loaded(config, tokenizer, length, run, parameter_bytes(path), parameters)


RUNNERS: dict[str, Runner] = {
    "JAX": Runner(_load_ours, "jax"),
    "JAX, int8": Runner(partial(_load_ours, int8=True), "jax", int8_of="JAX"),
    "torch": Runner(
        _load_torch, "torch", any_length=True, imports=(*TOKENIZERS, "transformers:BertForSequenceClassification")
    ),
    "ONNX Runtime": Runner(_load_ours, "onnxruntime", any_length=True),
    "StableHLO": Runner(_load_ours, "jax"),
}


def parts_of(model: str) -> list[tuple[str, str]]:
    """The parts of a model that can be run: directories and files, each with the name of a program of RUNNERS.

    Args:
        model: a Hugging Face directory or hub id, a directory with exported files, or an exported file. A directory
            may have both weights and exported files.

    Raises:
        InputError: it is none of these, or its `config.json` is damaged.
    """
    exported, path = exported_file(model), Path(os.path.expanduser(model))
    files = [path] if exported is not None and exported[0] == path else exported_files(path)
    parts = [(str(file), "ONNX Runtime" if file.suffix == ".onnx" else "StableHLO") for file in files]
    if exported is not None:
        return parts
    in_int8 = load_config(resolve(model)).weight_bits is not None
    return [(model, by) for by in (("JAX, int8",) if in_int8 else ("JAX", "JAX, int8")) + ("torch",)] + parts
