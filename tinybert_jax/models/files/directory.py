"""Hugging Face directory <-> (config, params, tokenizer), exact both ways."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from tinybert_jax.batch import Params
from tinybert_jax.errors import InputError, first_line, note
from tinybert_jax.models.config import EMBEDDING_DENSE, SLIM, BertConfig
from tinybert_jax.models.families import EXPORTED
from tinybert_jax.models.files.bitmask import PACKED_FILE, pack
from tinybert_jax.models.files.hub import resolve
from tinybert_jax.models.files.saved_tokenizer import save_tokenizer
from tinybert_jax.models.files.sentence import dense_folder, read_activation, read_dense, read_embedding, write_modules
from tinybert_jax.models.files.tensors import FIT_NAMES, architecture, from_hf_tensors, head_of, to_hf_tensors
from tinybert_jax.models.files.tokenizer import trained_length
from tinybert_jax.models.files.weights import ADAPTER, read_json, read_tensors, weights_files, write_tensors
from tinybert_jax.models.heads import HEADS
from tinybert_jax.models.parameters import resize_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_config(directory: str | Path) -> BertConfig:
    """The config of a Hugging Face directory.

    Raises:
        InputError: `config.json` is missing, is not JSON, or describes what this library cannot run.
    """
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; is {directory} a Hugging Face model directory?{_what_is_there(path.parent)}"
        )
    hf = read_json(path)
    if not isinstance(hf, dict):
        raise InputError(f"{path}:1: no JSON object: copy the model's own file anew")
    try:
        config = BertConfig.from_hf(hf)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    config = dataclasses.replace(config, score_activation=read_activation(path.parent, hf))
    with contextlib.suppress(InputError):  # `fit.check_has_head` raises it again in tasks with vectors
        return dataclasses.replace(config, embedding=read_embedding(path.parent))
    return config


def parameter_bytes(directory: Path) -> int:
    """The size of the files with a directory's parameters, with those of a dense module.

    Raises:
        InputError: the index of the shards, or `modules.json`, is damaged.
    """
    dense = dense_folder(directory)
    files = [*weights_files(directory), *([] if dense is None else weights_files(dense))]
    return sum(file.stat().st_size for file in files)


def _check_has_layers(path: Path, config: BertConfig) -> None:
    """Refuse a model of a family that is supported only as an exported model."""
    if config.model_type in EXPORTED:
        raise InputError(
            f"{path}: {config.family.title} teaches by its predictions alone: give its ONNX export as the teacher"
            f" (optimum-cli export onnx --model {path} OUT), or a file of its predictions, with --stage prediction"
        )


def _what_is_there(directory: Path) -> str:
    """The end of a message: what a directory without a `config.json` is, and what to do; "" if that is not known."""
    if (directory / "student" / "config.json").is_file():
        return f" no, a run's: its model is {directory / 'student'}"
    if (directory / "experiment.json").is_file():
        return " no, a run's that is not finished: continue it with --resume"
    if (directory / "adapter_config.json").is_file():
        return f" no, {ADAPTER}"
    if (directory / "bert_config.json").is_file() and weights_files(directory):
        return " an old one: rename its bert_config.json to config.json"
    if next(directory.glob("*.ckpt*"), None):
        return (
            " no, a checkpoint of TensorFlow: convert it with transformers 4 (transformers-cli convert --model_type"
            " bert), and save it by save_pretrained()"
        )
    below = [path.parent for depth in ("*", "*/*") for path in sorted(directory.glob(f"{depth}/config.json"))]
    models = [str(path.relative_to(directory)) for path in below if weights_files(path)]
    return f" no, but there are models in it: {', '.join(models[:3])}: name one of them" if models else ""


def load_architectures(directory: str | Path) -> list[str]:
    """The class names of `transformers` in the `architectures` of a `config.json`."""
    return re.findall(r"\w+", str(read_json(Path(directory) / "config.json").get("architectures")))


def load_hf(directory: str | Path) -> tuple[BertConfig, Params]:
    """Config and float32 parameters of a BERT checkpoint, with all its heads, and an embedding model's dense module.

    Args:
        directory: a Hugging Face directory (`model.safetensors`, `pytorch_model.bin` or `flax_model.msgpack`, in one
            file or sharded), or a hub id, as in `resolve`.

    Returns:
        The config, and the parameters as `{"encoder": ...}` plus heads; leaves of layers are stacked [l, ...].
        A TinyBERT checkpoint of the paper's authors also has projections of hidden states to the teacher's width:
        `fit_dense`, or `fit_denses` stacked [l + 1, ...]. Its classifier is left out, with a note.

    Raises:
        InputError: a file is missing or damaged; a tensor is missing, surplus, or not of the config's shape, or has
            infinities or NaNs.
    """
    path = resolve(str(directory))
    config = load_config(path)
    _check_has_layers(path, config)
    tensors, architectures = read_tensors(path), load_architectures(path)
    if any(name.endswith("ForMultipleChoice") for name in architectures):
        heads = [name for name in tensors if name.split(".")[0] in ("classifier", "pre_classifier")]
        note(f"{path}: its head for multiple choice is left out: no task here has one")
        tensors = {name: tensor for name, tensor in tensors.items() if name not in heads}
    params = from_hf_tensors(config, tensors, str(path))
    if config.embedding is not None and config.embedding.width is not None:
        params[EMBEDDING_DENSE] = read_dense(path, config)
    named = [row for row in HEADS.values() if config.family.architecture + row.architecture in architectures]
    if any(row.pooled is False for row in named):
        params["encoder"].pop("pooler", None)  # older versions of `transformers` saved an unused one
    is_ours = any(row.key == "classifier" for row in named)
    if "classifier" in params and any(name in params for name in FIT_NAMES) and not is_ours:
        del params["classifier"]
        note(
            f"{path}: its classifier is left out: that of TinyBERT's authors has a ReLU before it, which BERT's"
            " has not"
        )
    return config, params


def save_hf(
    directory: str | Path,
    config: BertConfig,
    params: Params,
    tokenizer: PreTrainedTokenizerBase | None = None,
    packed: bool = False,
) -> None:
    """Write `config.json`, `model.safetensors` and the tokenizer's files as `transformers` reads them.

    Args:
        directory: created if it does not exist.
        config: the model's config.
        params: the parameters as `load_hf` returns them. Their head determines `architectures`.
        tokenizer: also saved, unless None.
        packed: store matrices with many zeros without the zeros. `transformers` cannot read them.

    Raises:
        OSError: something could not be written.
    """
    path = Path(directory)
    save_description(path, config, params, tokenizer, packed)
    tensors = to_hf_tensors(resize_vocabulary(params, config.vocab_size), config)
    write_tensors(path / (PACKED_FILE if packed else "model.safetensors"), pack(tensors) if packed else tensors)
    if packed:
        (path / "model.safetensors").unlink(missing_ok=True)  # an older model's; it would be read first


def save_description(
    directory: str | Path,
    config: BertConfig,
    params: Params,
    tokenizer: PreTrainedTokenizerBase | None,
    packed: bool = False,
) -> None:
    """Write all files of `save_hf` except the weights: `config.json`, the tokenizer's files and, for embedding models,
    the modules of sentence-transformers. Arguments as `save_hf`.

    Raises:
        OSError: something could not be written.
    """
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    hf = config.to_hf() | {"architectures": [architecture(params, config)], "dtype": "float32"}
    if packed:
        hf["model_type"] = SLIM + config.model_type
    (path / "config.json").write_text(json.dumps(hf, indent=2, sort_keys=True) + "\n", "utf-8")
    if HEADS[head_of(params, config)].gives_vectors:
        write_modules(path, config, params, None if tokenizer is None else trained_length(tokenizer, config))
    if tokenizer is None:
        return
    try:
        save_tokenizer(path, config, tokenizer)
    except OSError:
        raise
    except Exception as error:  # the Rust backend does not raise an OSError on a full disk
        raise OSError(errno.EIO, first_line(error), str(path)) from error
