"""Hugging Face directory <-> (config, params, tokenizer), exact both ways."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors.numpy import save_file

from tinybert_jax.config import MIN_LENGTH, BertConfig, InputError, Params
from tinybert_jax.heads import BertForMaskedLM, BertForQuestionAnswering, BertForTokenClassification
from tinybert_jax.model import BertModel, resize_vocabulary
from tinybert_jax.weights import TORCH_FILE, first_line, read_json, read_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HUB_FILES = ["config.json", "*.safetensors", "*.safetensors.index.json"]
HUB_FILES += ["tokenizer*", "vocab.txt", "special_tokens*", "added_tokens.json"]
TABLES = ("word_embeddings", "position_embeddings", "token_type_embeddings")
LAYER = ("bert", "encoder", "layer")
STACKED = (LAYER, ("fit_denses",))  # what checkpoints number, and we stack
FIT_NAMES = ("fit_dense", "fit_denses")  # projections of hidden states in a TinyBERT as its authors publish it
IGNORED = ("position_ids",)  # a buffer that old checkpoints saved
OURS = ("embedding", "scale", "kernel")  # the ends of our names where theirs end on "weight"


def resolve(name: str) -> Path:
    """The directory of a model given as a directory or as a hub id, which is downloaded once.

    Raises:
        InputError: there is no such directory, and the hub did not give it either.
    """
    # os.path, because pathlib raises on a name that is too long and on a user that there is not
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):
        return path
    looks_local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or os.path.exists(path)
    if looks_local or "/" not in name:
        raise InputError(f"{name}: no such directory; give a Hugging Face model directory, or a hub id (owner/name)")
    import huggingface_hub

    try:
        with contextlib.suppress(FileNotFoundError):
            cached = Path(huggingface_hub.snapshot_download(name, allow_patterns=HUB_FILES, local_files_only=True))
            if _is_whole(cached):
                return cached
        # offline, this fails at once; a download retries
        there = [file.rfilename for file in huggingface_hub.HfApi().model_info(name, timeout=5).siblings or []]
        weights = [] if any(file.endswith(".safetensors") for file in there) else [TORCH_FILE]
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=HUB_FILES + weights))
    except Exception as error:  # the hub client raises its own, requests' and httpx's errors
        raise InputError(
            f"{name}: no such directory, and it could not be fetched from the Hugging Face hub ({first_line(error)})"
        ) from None


def _is_whole(cached: Path) -> bool:
    """Whether a snapshot of the hub holds a model: another program may have fetched its config alone."""
    index = cached / "model.safetensors.index.json"
    weights = set(read_json(index)["weight_map"].values()) if index.is_file() else {"model.safetensors"}
    found = all((cached / file).is_file() for file in weights) or (cached / TORCH_FILE).is_file()
    named = (cached / "tokenizer.json").is_file() or (cached / "vocab.txt").is_file()
    return (cached / "config.json").is_file() and found and named


def fingerprint(directory: str | Path) -> str:
    """sha256 of a model directory's config and weights."""
    path = resolve(str(directory))
    digest = hashlib.sha256()
    for file in sorted([path / "config.json", *path.glob("*.safetensors"), *path.glob(TORCH_FILE)]):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def load_config(directory: str | Path) -> BertConfig:
    """The config of a Hugging Face directory.

    Raises:
        InputError: `config.json` is missing, is not JSON, or describes what this library cannot run.
    """
    path = Path(directory) / "config.json"
    if not path.is_file():
        of_run = (path.parent / "student" / path.name).is_file()
        answer = " no, a run's: its model is in its student/" if of_run else ""
        raise InputError(f"{path}: no such file; is {directory} a Hugging Face model directory?{answer}")
    hf = read_json(path)
    if not isinstance(hf, dict):
        raise InputError(f"{path}:1: no JSON object: copy the model's own file anew")
    try:
        return BertConfig.from_hf(hf)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def load_hf(directory: str | Path) -> tuple[BertConfig, Params]:
    """Config and float32 parameters of a BERT checkpoint, with every head it holds.

    Args:
        directory: a Hugging Face directory (`model.safetensors`, one file or sharded; `pytorch_model.bin` only where
            torch is installed), or a hub id.

    Returns:
        The config, and the parameters as `{"bert": ...}` plus heads; leaves of `encoder/layer` are stacked [l, ...].
        A TinyBERT as its authors' code saves it also has `fit_dense`, or, stacked [l + 1, ...], `fit_denses`:
        projections of its hidden states to its teacher's width; its classifier is left out, with a note.

    Raises:
        InputError: a file is missing or damaged; a tensor is missing, surplus, not of the config's shape, or holds
            what is no number.
    """
    path = resolve(str(directory))
    config = load_config(path)
    params = from_hf_tensors(config, read_tensors(path), str(path))
    architectures = re.findall(r"\w+", str(read_json(path / "config.json").get("architectures")))
    if "BertForTokenClassification" in architectures:
        params["bert"].pop("pooler", None)  # older versions of `transformers` saved one that nothing reads
    ours = {"BertForSequenceClassification", "BertForTokenClassification"} & set(architectures)
    if "classifier" in params and any(name in params for name in FIT_NAMES) and not ours:
        del params["classifier"]
        print(
            f"note: {path}: its classifier is left out: that of TinyBERT's authors has a ReLU before it, which BERT's"
            " has not",
            file=sys.stderr,
        )
    return config, params


def save_hf(
    directory: str | Path, config: BertConfig, params: Params, tokenizer: PreTrainedTokenizerBase | None = None
) -> None:
    """Write `config.json`, `model.safetensors` and the tokenizer's files as `transformers` reads them.

    Args:
        directory: made if it does not exist.
        config: of the model.
        params: as `load_hf` gives them; which heads they hold decides `architectures`.
        tokenizer: saved beside the weights where given.

    Raises:
        OSError: something could not be written.
    """
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    hf = config.to_hf() | {"architectures": [_architecture(params)], "dtype": "float32"}
    (path / "config.json").write_text(json.dumps(hf, indent=2, sort_keys=True) + "\n", "utf-8")
    # renamed into place: a directory that has weights has whole ones
    tensors = to_hf_tensors(resize_vocabulary(params, config.vocab_size))
    try:
        save_file(tensors, path / "model.safetensors.tmp", metadata={"format": "pt"})
        os.replace(path / "model.safetensors.tmp", path / "model.safetensors")
        if tokenizer is not None:
            tokenizer.save_pretrained(path)
    except OSError:
        raise
    except Exception as error:  # of both libraries' Rust, for which a full disk is no OSError
        raise OSError(errno.EIO, first_line(error), str(path)) from error


def load_tokenizer(directory: str | Path, config: BertConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face directory, checked against the model's vocabulary.

    Raises:
        InputError: there are no tokenizer files, a special token is missing from the vocabulary, an id lies outside
            the embedding, the length of a text is limited to what is no length, or there is no Rust backend.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # "PyTorch was not found": it is not needed
    from transformers import AutoTokenizer

    path = resolve(str(directory))
    if not any((path / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise InputError(f"{path}: no tokenizer.json and no vocab.txt; copy the tokenizer's files into the directory")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the Rust backend raises bare Exception
        raise InputError(
            f"{path}: the tokenizer cannot be read ({first_line(error)}): copy the tokenizer's files anew"
        ) from None
    if not hasattr(tokenizer, "backend_tokenizer"):
        kind = type(tokenizer).__name__
        raise InputError(f"{path}: {kind} has no Rust backend, which is needed: give a model with a tokenizer.json")
    # A special token that the vocabulary lacks is appended to it, under an id that the model was never trained on.
    vocabulary = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
    for token in ("pad", "unk", "cls", "sep"):
        text = getattr(tokenizer, f"{token}_token")
        if text is None or text not in vocabulary:
            named = f", which is to be {text!r}" if text is not None else ""
            raise InputError(
                f"{path}: the tokenizer's vocabulary has no {token} token{named}: copy the tokenizer's files anew"
            )
    # Not their number: where a vocab.txt holds a token twice, ids are left out.
    largest = max(tokenizer.get_vocab().values())
    if largest >= config.vocab_size:
        raise InputError(
            f"{path}: the tokenizer's ids go up to {largest}, but the model's vocab_size is {config.vocab_size}:"
            " copy the files of the model's own tokenizer (to one without [MASK], a [MASK] is appended)"
        )
    length = tokenizer.model_max_length
    if isinstance(length, bool) or not isinstance(length, int | float) or not MIN_LENGTH <= length < float("inf"):
        raise InputError(f"{path}: model_max_length is {length!r}; it must be a number, at least {MIN_LENGTH}")
    tokenizer.model_max_length = int(length)
    return tokenizer


def from_hf_tensors(config: BertConfig, tensors: dict[str, np.ndarray], where: str) -> Params:
    """Parameters from tensors under Hugging Face's names, each key and shape checked against the config.

    Raises:
        InputError: names `where` and the tensors that are missing, surplus, of another shape or without numbers.
    """
    prefix = "" if any(name.startswith("bert.") for name in tensors) else "bert."
    flat: dict[tuple[str, ...], Any] = {}
    numbered: dict[tuple[str, ...], dict[int, np.ndarray]] = {}
    names: dict[tuple[str, ...], str] = {}
    for name, tensor in tensors.items():
        theirs = tuple(f"{prefix if name.startswith(('embeddings', 'encoder', 'pooler')) else ''}{name}".split("."))
        if theirs[-1] in IGNORED:
            continue
        path = _to_ours(theirs)
        if theirs[-1] in OURS:
            raise InputError(f"{where}: the weights hold {name!r}, which no BERT has: remove or rename it")
        if path in names:
            raise InputError(f"{where}: {names[path]!r} and {name!r} are the same tensor: keep one of the two")
        names[path] = name
        value = _transpose(path, _float32(tensor, name, where))
        group = _numbered(path)
        if group and re.fullmatch("0|[1-9][0-9]{0,8}", path[len(group)]):
            numbered.setdefault(group + path[len(group) + 1 :], {})[int(path[len(group)])] = value
        else:
            flat[path] = value
    if not any(path[: len(LAYER)] == LAYER for path in numbered):
        # before the model is built: as many layers as a wrong config says may not fit into memory
        raise InputError(f"{where}: the weights hold no layer; config.json says {config.num_hidden_layers}")
    _untie(flat, where)
    for path, values in numbered.items():
        flat[path] = _stack(config, path, values, where)
    _check_shapes(config, flat, where)
    return traverse_util.unflatten_dict({path: jnp.asarray(value) for path, value in flat.items()})


def to_hf_tensors(params: Params) -> dict[str, np.ndarray]:
    """Tensors under Hugging Face's names, in its orientation. A bare encoder loses the prefix `bert.`, as there."""
    tensors = {}
    for path, leaf in traverse_util.flatten_dict(params).items():
        value = np.asarray(jax.device_get(leaf))
        if group := _numbered(path):
            for i, own in enumerate(value):
                tensors[".".join(_to_theirs((*group, str(i), *path[len(group) :])))] = _transpose(path, own)
        else:
            tensors[".".join(_to_theirs(path))] = _transpose(path, value)
    if set(params) == {"bert"}:
        tensors = {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
    return {name: np.ascontiguousarray(tensor) for name, tensor in sorted(tensors.items())}


def _to_ours(path: tuple[str, ...]) -> tuple[str, ...]:
    last, parent = path[-1], path[-2] if len(path) > 1 else ""
    if parent == "LayerNorm":
        last = {"gamma": "weight", "beta": "bias"}.get(last, last)  # the first TensorFlow checkpoints' names
    if last == "weight":
        last = "embedding" if parent in TABLES else "scale" if parent == "LayerNorm" else "kernel"
    return (*path[:-1], last)


def _float32(tensor: np.ndarray, name: str, where: str) -> np.ndarray:
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise InputError(f"{where}: {name!r} is of the type {tensor.dtype}: save the model in float32")
    with np.errstate(over="ignore"):  # the check below says it better
        value = np.asarray(tensor, np.float32)
    if not np.isfinite(value).all():
        raise InputError(
            f"{where}: {name!r} holds an infinity or a NaN: the file is damaged or its training diverged, take another"
        )
    return value


def _to_theirs(path: tuple[str, ...]) -> tuple[str, ...]:
    return (*path[:-1], "weight" if path[-1] in OURS else path[-1])


def _transpose(path: tuple[str, ...], value: np.ndarray) -> np.ndarray:
    return value.T if path[-1] == "kernel" else value


def _numbered(path: tuple[str, ...]) -> tuple[str, ...]:
    """The beginning of a path that in their names a number follows, and in ours none, since we stack; else ()."""
    return next((group for group in STACKED if path[: len(group)] == group and len(path) > len(group)), ())


def _stack(config: BertConfig, path: tuple[str, ...], values: dict[int, np.ndarray], where: str) -> np.ndarray:
    """One tensor per layer, or per hidden state, as one leaf; all must be there, and of one shape."""
    layers = config.num_hidden_layers
    kind, count = ("layer", layers) if path[:3] == LAYER else ("projection", layers + 1)
    # the first ones suffice: a wrong config may say a billion
    missing = list(itertools.islice((str(i) for i in range(count) if i not in values), 4))
    if missing or len(values) != count:
        name = "/".join(path[len(_numbered(path)) :])
        some = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
        raise InputError(
            f"{where}: config.json says {layers} layers, but the weights hold {len(values)} of {count} {kind}s' {name}"
            + (f"; missing: {kind} {some}" if missing else "")
        )
    if len({value.shape for value in values.values()}) > 1:
        raise InputError(f"{where}: the {kind}s' tensors of {'/'.join(path)} are not all of one shape")
    return np.stack([values[i] for i in range(count)])


def _untie(flat: dict[tuple[str, ...], Any], where: str) -> None:
    """Drop the masked-LM decoder's copies of what it shares with the embedding and the bias."""
    for copy, original in (
        (("cls", "predictions", "decoder", "kernel"), ("bert", "embeddings", "word_embeddings", "embedding")),
        (("cls", "predictions", "decoder", "bias"), ("cls", "predictions", "bias")),
    ):
        if copy in flat:
            value = flat.pop(copy)
            value = value.T if copy[-1] == "kernel" else value
            if not np.array_equal(value, flat.setdefault(original, value)):
                raise InputError(
                    f"{where}: {'.'.join(copy)} differs from {'.'.join(original)}: untied is not supported"
                )


def _check_shapes(config: BertConfig, flat: dict[tuple[str, ...], Any], where: str) -> None:
    expected = traverse_util.flatten_dict(
        _shapes(BertModel(config, add_pooler=("bert", "pooler", "dense", "kernel") in flat))
    )
    expected = {("bert", *path): leaf for path, leaf in expected.items()}
    heads = {path[0] for path in flat} - {"bert"}
    for head, model in (
        ("classifier", BertForTokenClassification(config)),
        ("qa_outputs", BertForQuestionAnswering(config)),
        ("cls", BertForMaskedLM(config)),
    ):
        if head in heads:
            expected |= {
                path: leaf for path, leaf in traverse_util.flatten_dict(_shapes(model)).items() if path[0] == head
            }
    if ("cls", "seq_relationship", "kernel") in flat:  # next sentence prediction, of checkpoints as pretrained
        width = config.hidden_size
        expected[("cls", "seq_relationship", "kernel")] = jax.ShapeDtypeStruct((width, 2), jnp.float32)
        expected[("cls", "seq_relationship", "bias")] = jax.ShapeDtypeStruct((2,), jnp.float32)

    fit = "fit_denses" if "fit_denses" in heads else "fit_dense"
    if fit in heads:  # whose other side is a teacher, of any width
        stacked = (config.num_hidden_layers + 1,) if fit == "fit_denses" else ()
        kernel = flat.get((fit, "kernel"), np.zeros(1))
        width = kernel.shape[-1:]  # of a tensor without axes, none
        expected[(fit, "kernel")] = jax.ShapeDtypeStruct((*stacked, config.hidden_size, *width), jnp.float32)
        expected[(fit, "bias")] = jax.ShapeDtypeStruct((*stacked, *width), jnp.float32)

    def some(paths: set[tuple[str, ...]]) -> str:
        return ", ".join(sorted("/".join(path) for path in paths)[:3]) + (" ..." if len(paths) > 3 else "")

    if missing := expected.keys() - flat.keys():
        raise InputError(f"{where}: {len(missing)} of {len(expected)} tensors are missing: {some(missing)}")
    if surplus := flat.keys() - expected.keys():
        raise InputError(f"{where}: the weights hold {len(surplus)} tensors that no BERT has: {some(surplus)}")
    for path, leaf in expected.items():
        if leaf.shape != flat[path].shape:
            raise InputError(
                f"{where}: {'/'.join(path)} has the shape {flat[path].shape}; config.json makes it {leaf.shape}"
            )


def _shapes(model: Any) -> Params:
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]


def _architecture(params: Params) -> str:
    if "classifier" in params:
        return "BertForSequenceClassification" if "pooler" in params["bert"] else "BertForTokenClassification"
    if "qa_outputs" in params:
        return "BertForQuestionAnswering"
    if "cls" in params:
        return "BertForPreTraining" if "seq_relationship" in params["cls"] else "BertForMaskedLM"
    return "BertModel"
