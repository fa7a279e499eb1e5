"""The modules after the encoder in a sentence-transformers directory: pooling, a dense layer, normalisation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np

from tinybert_jax.batch import Params
from tinybert_jax.errors import InputError
from tinybert_jax.models.config import EMBEDDING_DENSE, BertConfig, DenseActivation, PoolingName, TextVector
from tinybert_jax.models.files.weights import read_json, read_tensors, write_tensors

MODULES, SENTENCE, SETTINGS = "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"
KINDS = ("Transformer", "Pooling", "Dense", "Normalize")  # in the order in which they are applied
TYPES = "sentence_transformers.models."  # the prefix of a kind in modules.json
ACTIVATIONS = {"Identity": "torch.nn.modules.linear.Identity", "Tanh": "torch.nn.modules.activation.Tanh"}
MODES = {
    f"{name}_token{'' if name == 'cls' else 's'}": name for name in get_args(PoolingName)
}  # in a pooling's config
OTHER_MODES = ("mean_sqrt_len_tokens",)  # every version of sentence-transformers expects it; not supported here


def read_embedding(directory: Path) -> TextVector | None:
    """How a text's vector is computed, by a directory's `modules.json`; None if it has no such file.

    Raises:
        InputError: a file is missing or damaged, or names something that is not supported.
    """
    if not (directory / MODULES).is_file():
        return None
    folders = _folders(directory / MODULES)
    if _object(directory / SENTENCE).get("do_lower_case"):
        raise InputError(
            f"{directory / SENTENCE}: do_lower_case is not supported: write false, if its tokenizer lowers the case"
        )
    settings = _object(directory / SETTINGS)
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, Mapping) or not all(isinstance(text, str) for text in prompts.values()):
        raise InputError(f"{directory / SETTINGS}: prompts must be an object of names and texts")
    default_prompt = settings.get("default_prompt_name")
    if default_prompt is not None and default_prompt not in prompts:
        known = ", ".join(map(repr, prompts)) or "none"
        raise InputError(
            f"{directory / SETTINGS}: default_prompt_name is {default_prompt!r}, and the prompts are {known}: name one"
            " of them, or write null"
        )
    pooling = _pooling(directory / folders["Pooling"] / "config.json")
    width, activation = None, TextVector().activation
    if "Dense" in folders:
        width, activation = _dense(directory / folders["Dense"] / "config.json")
    normalize = "Normalize" in folders
    return TextVector(pooling, width, normalize, tuple(prompts.items()), activation, default_prompt)


def sentence_length(directory: Path) -> Any:
    """The `max_seq_length` of a sentence-transformers directory, in tokens; None if it is not set.

    Raises:
        InputError: the file is damaged.
    """
    return _object(directory / SENTENCE).get("max_seq_length")


def dense_folder(directory: Path) -> Path | None:
    """The folder of a directory's dense module; None if it has none.

    Raises:
        InputError: `modules.json` is damaged.
    """
    path = directory / MODULES
    folder = _folders(path).get("Dense") if path.is_file() else None
    return None if folder is None else directory / folder


def read_dense(directory: Path, config: BertConfig) -> Params:
    """The kernel [d, n] and the bias [n] of the dense module; without a bias, zeros.

    Raises:
        InputError: its weights are missing or damaged, or have another shape.
    """
    folder = dense_folder(directory)
    assert folder is not None, "a config with a vector width has a dense module"
    tensors, shape = read_tensors(folder), (config.vector_width, config.hidden_size)
    kernel = np.asarray(tensors.get("linear.weight", np.zeros(0)), np.float32)
    bias = np.asarray(tensors.get("linear.bias", np.zeros(shape[0])), np.float32)
    if not np.isfinite(kernel).all() or not np.isfinite(bias).all():
        raise InputError(f"{folder}: holds an infinity or a NaN: fetch the files again")
    if kernel.shape != shape or bias.shape != shape[:1]:
        raise InputError(
            f"{folder}: linear.weight has the shape {kernel.shape}, and linear.bias {bias.shape}; config.json makes"
            f" them {shape} and {shape[:1]}: take the files that were saved with these"
        )
    return {"kernel": kernel.T, "bias": bias}


def read_activation(directory: Path, hf: Mapping[str, Any]) -> str | None:
    """The torch class of the activation that a CrossEncoder applies to its output; None if no file names one.

    Args:
        directory: the model's directory. sentence-transformers 6 writes the class into a separate file.
        hf: the content of `config.json`. Older versions write it there, version 3 under another name.
    """
    settings = read_json(directory / SETTINGS) if (directory / SETTINGS).is_file() else {}
    for described, name in (
        (settings, "activation_fn"),
        (hf.get("sentence_transformers"), "activation_fn"),
        (hf, "sbert_ce_default_activation_function"),
    ):
        if isinstance(described, Mapping) and isinstance(described.get(name), str):
            return described[name]
    return None


def write_modules(directory: Path, config: BertConfig, params: Params, max_length: int | None) -> None:
    """Write the files with which sentence-transformers loads the model. `max_length` is that of texts, in tokens.

    Raises:
        OSError: something could not be written.
    """
    how = config.embedding
    assert how is not None, "the config says how a vector is made"
    has = {"Dense": how.width is not None, "Normalize": how.normalize}
    kinds = [kind for kind in KINDS if has.get(kind, True)]
    paths = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds) if number)]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": TYPES + kind}
        for number, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    _write(directory / MODULES, modules)
    _write(directory / SENTENCE, {"max_seq_length": max_length, "do_lower_case": False})
    modes = {mode: name == how.pooling for mode, name in MODES.items()} | dict.fromkeys(OTHER_MODES, False)
    pooling = {"word_embedding_dimension": config.hidden_size}
    _write(directory / paths[1] / "config.json", pooling | {f"pooling_mode_{mode}": on for mode, on in modes.items()})
    if how.width is not None:
        sizes = {"in_features": config.hidden_size, "out_features": how.width, "bias": True}
        _write(directory / paths[2] / "config.json", sizes | {"activation_function": ACTIVATIONS[how.activation]})
        kernel, bias = (np.asarray(params[EMBEDDING_DENSE][name]) for name in ("kernel", "bias"))
        write_tensors(directory / paths[2] / "model.safetensors", {"linear.weight": kernel.T, "linear.bias": bias})
    if how.prompts:
        _write(directory / SETTINGS, {"prompts": dict(how.prompts), "default_prompt_name": how.default_prompt})
    if how.normalize:
        (directory / paths[-1]).mkdir(exist_ok=True)


def _folders(path: Path) -> dict[str, str]:
    """The folder of each kind of module in a `modules.json`."""
    modules = read_json(path)
    if not isinstance(modules, list) or not all(
        isinstance(module, Mapping) and isinstance(module.get("type"), str) and isinstance(module.get("path"), str)
        for module in modules
    ):
        raise InputError(f"{path}: not a list of modules: copy the model's own file anew")
    kinds = [module["type"].rpartition(".")[2] for module in modules]
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise InputError(f"{path}: module {unknown[0]!r} is not supported; supported are {', '.join(KINDS)}")
    if kinds[:2] != [*KINDS[:2]] or kinds != [kind for kind in KINDS if kind in kinds]:
        raise InputError(
            f"{path}: the modules {', '.join(kinds)} are not supported; supported are {', '.join(KINDS)}, in this"
            " order, each once, and the last two may be missing"
        )
    folders = dict(zip(kinds, (module["path"] for module in modules), strict=True))
    if folders["Transformer"] or any(len(Path(folder).parts) > 1 or ".." in folder for folder in folders.values()):
        raise InputError(f"{path}: only modules in folders beside it are supported, and the Transformer's files here")
    return folders


def _pooling(path: Path) -> PoolingName:
    """The kind of pooling in a pooling module's config."""
    described = _object(path, is_named=True)
    if described.get("include_prompt") is False:
        raise InputError(f"{path}: include_prompt false is not supported: the vectors of texts with a prompt differ")
    named = described.get("pooling_mode")  # a word in newer files; older ones have a flag for each mode
    flags = [name for name, value in described.items() if name.startswith("pooling_mode_") and value is True]
    modes = [str(named)] if named is not None else [name.removeprefix("pooling_mode_") for name in flags]
    modes = [MODES.get(mode, mode) for mode in modes]
    for name in get_args(PoolingName):
        if modes == [name]:
            return name
    asked = " and ".join(map(repr, modes)) or "of no kind"
    raise InputError(f"{path}: pooling {asked} is not supported; supported is one of {', '.join(MODES.values())}")


def _dense(path: Path) -> tuple[int, DenseActivation]:
    """The width and the activation in a dense module's config."""
    described = _object(path, is_named=True)
    # the default of sentence-transformers is Tanh
    named = str(described.get("activation_function", ACTIVATIONS["Tanh"])).rpartition(".")[2]
    activation = next((name for name in get_args(DenseActivation) if name == named), None)
    if activation is None:
        known = ", ".join(ACTIVATIONS)
        raise InputError(f"{path}: activation_function {named!r} is not supported; supported are {known}")
    if described.get("use_residual"):
        raise InputError(f"{path}: use_residual is not supported: the layer's input is not added to its output")
    for name in ("module_input_name", "module_output_name"):
        if (place := described.get(name)) not in (None, "sentence_embedding"):
            raise InputError(f"{path}: {name} {place!r} is not supported; supported is sentence_embedding")
    width = described.get("out_features")
    if not isinstance(width, int) or width < 1:
        raise InputError(f"{path}: out_features is {width!r}; it must be a whole number, at least 1")
    return width, activation


def _object(path: Path, is_named: bool = False) -> Mapping[str, Any]:
    """The JSON object in a file. A missing file counts as empty, unless `modules.json` names it."""
    if is_named and not path.is_file():
        raise InputError(f"{path}: no such file, but {MODULES} names its folder: fetch it too")
    content = read_json(path) if path.is_file() else {}
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: no JSON object: copy the model's own file anew")
    return content


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
