"""Tensors under Hugging Face's names <-> parameters, exact both ways."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from tinybert_jax.batch import Params
from tinybert_jax.errors import InputError, note
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.encoder import BertModel
from tinybert_jax.models.families import FAMILIES
from tinybert_jax.models.heads import HEADS
from tinybert_jax.models.parameters import parameter_shapes

TABLES = ("word_embeddings", "position_embeddings", "token_type_embeddings", "relative_attention_bias")
LAYER = ("encoder", "encoder", "layer")
STACKED = (LAYER, ("fit_denses",))  # modules that checkpoints number and this package stacks
FIT_NAMES = ("fit_dense", "fit_denses")  # projections of hidden states in the checkpoints of TinyBERT's authors
READ = {"encoder", *FIT_NAMES, *(row.key for row in HEADS.values())}  # possible beginnings of paths
BESIDE = {row.key for row in HEADS.values() if row.gives_vectors}  # parameters that are stored in separate files
IGNORED = ("position_ids", "token_type_ids")  # buffers in old checkpoints
WRAPPERS = ("_orig_mod.", "module.", "model.")  # prefixes of torch.compile, parallel training and Lightning
# the masked-LM decoder's copies of shared parameters, and the originals
DECODER = {
    ("cls", "predictions", "decoder", "kernel"): ("encoder", "embeddings", "word_embeddings", "embedding"),
    ("cls", "predictions", "decoder", "bias"): ("cls", "predictions", "bias"),
}
# next sentence prediction, in pretrained checkpoints
NEXT_SENTENCE = (("cls", "seq_relationship", "kernel"), ("cls", "seq_relationship", "bias"))
# the parts of the embeddings that are summed before their LayerNorm
ADDED = ("word_embeddings_projection", "position_embeddings", "token_type_embeddings")
OURS = ("embedding", "scale", "kernel")  # last parts of Flax names; in Hugging Face's names they are "weight"


def from_hf_tensors(config: BertConfig, tensors: dict[str, np.ndarray], where: str) -> Params:
    """Parameters from tensors under Hugging Face's names. Each key and shape is checked against the config.

    Tensors outside the encoder that belong to no head in `HEADS` are left out, with a note, as in `transformers`.

    Raises:
        InputError: tensors are missing, surplus, of another shape, or not finite. The message names them and `where`.
    """
    family = config.family
    tensors = _unwrapped(tensors)
    _check_family(config, tensors, where)
    prefix = "" if any(name.startswith(f"{family.prefix}.") for name in tensors) else f"{family.prefix}."
    head = _named_head(config, tensors)
    names: dict[tuple[str, ...], str] = {}
    for name in tensors:
        hf_path = tuple(f"{prefix if name.startswith(family.parts) else ''}{name}".split("."))
        if hf_path[-1] in IGNORED:
            continue
        path = _to_ours(family.to_ours(hf_path, head))
        if hf_path[:2] == (family.prefix, "pooler") and head in family.head_names:
            continue  # this head has another pooler, and the encoder's is not used
        if hf_path[-1] in OURS and path[0] in READ:
            raise InputError(f"{where}: the weights hold {name!r}, which no BERT has: remove or rename it")
        if path in names:
            raise InputError(f"{where}: {names[path]!r} and {name!r} are the same tensor: keep one of the two")
        names[path] = name
    left_out = _left_out(config, names)
    flat: dict[tuple[str, ...], Any] = {}
    numbered: dict[tuple[str, ...], dict[int, np.ndarray]] = {}
    for path, name in names.items():
        if path in left_out:
            continue
        value = _transpose(path, _float32(tensors[name], name, where))
        if _is_scaled(config, path):
            value = value / np.float32(config.table_scale)
        group = _numbered(path)
        if group and re.fullmatch("0|[1-9][0-9]{0,8}", path[len(group)]):
            numbered.setdefault(group + path[len(group) + 1 :], {})[int(path[len(group)])] = value
        else:
            flat[path] = value
    if not any(path[: len(LAYER)] == LAYER for path in numbered):
        # before the model is built: with a wrong number of layers in the config, it may not fit into memory
        here = f", not as {min(tensors)!r:.80}" if tensors else ""
        raise InputError(
            f"{where}: the weights hold no layer; config.json says {config.num_hidden_layers}: save the model by its"
            f" class in `transformers`, which names tensors {family.prefix}.{family.parts[1]}...{here}"
        )
    if left_out:
        some = _some(map(repr, left_out.values()))
        note(f"{where}: left out, as no model here reads it: {some}")
    _untie(flat, where)
    for path, values in numbered.items():
        flat[path] = _stack(config, path, values, where)
    _check_shapes(config, flat, names, head, where)
    return traverse_util.unflatten_dict(flat)


def to_hf_tensors(params: Params, config: BertConfig) -> dict[str, np.ndarray]:
    """Tensors under Hugging Face's names, with dense weights transposed. An encoder without a head has no prefix."""
    tensors = {}
    family, head = config.family, head_of(params, config)
    params = {name: part for name, part in params.items() if name not in BESIDE}
    for path, leaf in traverse_util.flatten_dict(params).items():
        if path[:2] == ("encoder", "pooler") and not family.has_pooler and head not in family.head_names:
            continue  # no class of transformers has it
        value = np.asarray(jax.device_get(leaf))
        if _is_scaled(config, path):
            value = value * np.float32(config.table_scale)
        if group := _numbered(path):
            for i, layer in enumerate(value):
                name = ".".join(_to_hf(family.to_hf((*group, str(i), *path[len(group) :]), head)))
                tensors[name] = _transpose(path, layer)
        else:
            tensors[".".join(_to_hf(family.to_hf(path, head)))] = _transpose(path, value)
    if set(params) == {"encoder"}:
        tensors = {name.removeprefix(f"{family.prefix}."): tensor for name, tensor in tensors.items()}
    return dict(sorted(tensors.items()))


def _unwrapped(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors without the prefix that a wrapper around the model puts before all names."""
    for wrapper in WRAPPERS * 2:  # wrappers may be nested
        if tensors and all(name.startswith(wrapper) for name in tensors):
            tensors = {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}
    return tensors


def _check_family(config: BertConfig, tensors: Iterable[str], where: str) -> None:
    """Refuse weights of one family with a config of another."""
    prefixes = {name.split(".")[0] for name in tensors}
    others = [row for row in FAMILIES.values() if row.prefix in prefixes]
    if others and config.family.prefix not in prefixes:
        raise InputError(
            f"{where}: the weights are those of {others[0].title}, but config.json's model_type is"
            f' {config.model_type!r} or missing: write "model_type": "{others[0].model_type}" into it'
        )


def _left_out(config: BertConfig, names: Mapping[tuple[str, ...], str]) -> dict[tuple[str, ...], str]:
    """The tensors outside the encoder that belong to no head in `HEADS`, such as a loss's weights or another head's.

    If one tensor of a head exists, its other tensors are expected, so that missing ones are reported.
    """
    keys = {row.key: head for head, row in HEADS.items() if head not in config.family.other_heads}
    kept: set[tuple[str, ...]] = set()
    for key in {path[0] for path in names} & keys.keys():
        paths = _head_paths(config, keys[key])
        if not paths.isdisjoint(names):
            kept |= paths | ({*DECODER, *NEXT_SENTENCE} if key == "cls" else set())
    beside = (path for path in names if path[0] not in ("encoder", *FIT_NAMES))
    return {path: names[path] for path in beside if path not in kept}


@functools.cache  # models are read several times in a run
def _head_paths(config: BertConfig, head: str) -> frozenset[tuple[str, ...]]:
    """The paths of a head's tensors, without the encoder's."""
    # one layer: with a wrong number of layers in the config, the model may not fit into memory
    groups = None if config.num_hidden_groups is None else 1
    model = HEADS[head].model(dataclasses.replace(config, num_hidden_layers=1, num_hidden_groups=groups))
    return frozenset(
        path for path in traverse_util.flatten_dict(parameter_shapes(model)) if path[0] == HEADS[head].key
    )


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
    with np.errstate(over="ignore"):  # the check below reports it
        value = np.asarray(tensor, np.float32)
    if not np.isfinite(value).all():
        raise InputError(
            f"{where}: {name!r} holds an infinity or a NaN: the file is damaged or its training diverged, take another"
        )
    return value


def _to_hf(path: tuple[str, ...]) -> tuple[str, ...]:
    return (*path[:-1], "weight" if path[-1] in OURS else path[-1])


def _is_scaled(config: BertConfig, path: tuple[str, ...]) -> bool:
    """Whether a tensor is multiplied by `table_scale` in files."""
    return config.table_scale != 1 and path[:2] == ("encoder", "embeddings") and path[2] in ADDED


def _transpose(path: tuple[str, ...], value: np.ndarray) -> np.ndarray:
    return value.T if path[-1] == "kernel" else value


def _numbered(path: tuple[str, ...]) -> tuple[str, ...]:
    """The beginning of a path after which Hugging Face's name has a layer number; () if the leaf is not stacked."""
    return next((group for group in STACKED if path[: len(group)] == group and len(path) > len(group)), ())


def _numbers_out(path: tuple[str, ...]) -> tuple[str, ...]:
    """The path without the layer number: that of the leaf in which the tensor is stacked."""
    group = _numbered(path)
    return group + path[len(group) + 1 :] if group else path


def _stack(config: BertConfig, path: tuple[str, ...], values: dict[int, np.ndarray], where: str) -> np.ndarray:
    """Stack the tensors of all layers, or of all hidden states, to one leaf. All must exist and have one shape."""
    layers = config.num_hidden_layers
    kind, count = ("layer", config.layer_groups) if path[:3] == LAYER else ("projection", layers + 1)
    # only the first ones: a wrong config may have a billion layers
    missing = list(itertools.islice((str(i) for i in range(count) if i not in values), 4))
    if missing or len(values) != count:
        name = "/".join(path[len(_numbered(path)) :])
        held = f"{len(values)} of {count}" if missing else len(values)
        some = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
        raise InputError(
            f"{where}: config.json says {layers} layers, but the weights hold {held} {kind}s' {name}"
            + (f"; missing: {kind} {some}" if missing else "")
        )
    if len({value.shape for value in values.values()}) > 1:
        raise InputError(f"{where}: the {kind}s' tensors of {'/'.join(path)} are not all of one shape")
    return np.stack([values[i] for i in range(count)])


def _untie(flat: dict[tuple[str, ...], Any], where: str) -> None:
    """Drop the masked-LM decoder's copies of the word table and of the bias."""
    for copy, original in DECODER.items():
        if copy in flat:
            value = flat.pop(copy)
            value = value.T if copy[-1] == "kernel" else value
            if not np.array_equal(value, flat.setdefault(original, value)):
                raise InputError(
                    f"{where}: {'.'.join(copy)} differs from {'.'.join(original)}: untied is not supported"
                )


def _check_shapes(
    config: BertConfig,
    flat: dict[tuple[str, ...], Any],
    names: Mapping[tuple[str, ...], str],
    head: str | None,
    where: str,
) -> None:
    expected = traverse_util.flatten_dict(
        parameter_shapes(BertModel(config, add_pooler=("encoder", "pooler", "dense", "kernel") in flat))
    )
    expected = {("encoder", *path): leaf for path, leaf in expected.items()}
    heads = {path[0] for path in flat} - {"encoder"}
    for key, model in {row.key: row.model for row in HEADS.values() if row.key in heads}.items():
        shapes = traverse_util.flatten_dict(parameter_shapes(model(config)))
        expected |= {path: leaf for path, leaf in shapes.items() if path[0] == key}
    if NEXT_SENTENCE[0] in flat:
        for path, shape in zip(NEXT_SENTENCE, ((config.hidden_size, 2), (2,)), strict=True):
            expected[path] = jax.ShapeDtypeStruct(shape, jnp.float32)

    fit = "fit_denses" if "fit_denses" in heads else "fit_dense"
    if fit in heads:  # they project to the width of a teacher, which may be any
        stacked = (config.num_hidden_layers + 1,) if fit == "fit_denses" else ()
        kernel = flat.get((fit, "kernel"), np.zeros(1))
        width = kernel.shape[-1:]  # () for a scalar
        expected[(fit, "kernel")] = jax.ShapeDtypeStruct((*stacked, config.hidden_size, *width), jnp.float32)
        expected[(fit, "bias")] = jax.ShapeDtypeStruct((*stacked, *width), jnp.float32)

    if missing := expected.keys() - flat.keys():
        some = _some(_hf_name(config, path, head) for path in missing)
        raise InputError(f"{where}: {len(missing)} of {len(expected)} tensors are missing: {some}")
    if surplus := flat.keys() - expected.keys():
        inside = [repr(name) for path, name in names.items() if path in surplus or _numbers_out(path) in surplus]
        raise InputError(f"{where}: the weights hold {len(inside)} tensors that no BERT has: {_some(inside)}")
    for path, leaf in expected.items():
        if leaf.shape != flat[path].shape:
            name = next((name for of, name in names.items() if _numbers_out(of) == path), _hf_name(config, path, head))
            written, expected_shape = (_written_shape(path, shape) for shape in (flat[path].shape, leaf.shape))
            raise InputError(
                f"{where}: {name!r} has the shape {written}; config.json makes it {expected_shape}:"
                f" {_remedy(config, path, written)}"
            )


def _hf_name(config: BertConfig, path: tuple[str, ...], head: str | None) -> str:
    """The name of a leaf's tensor in a file; of the first tensor if the leaf is stacked."""
    group = _numbered(path)
    numbered = (*group, "0", *path[len(group) :]) if group else path
    return ".".join(_to_hf(config.family.to_hf(numbered, head)))


def _written_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a leaf's tensor in a file; of one tensor if the leaf is stacked."""
    shape = shape[1:] if _numbered(path) else shape
    return shape[::-1] if path[-1] == "kernel" else shape


def _remedy(config: BertConfig, path: tuple[str, ...], written: tuple[int, ...]) -> str:
    """The advice for a tensor whose shape is not the config's."""
    if path in (("classifier", "kernel"), ("classifier", "bias")) and written and written[0] != config.num_labels:
        return (
            f"it names {config.num_labels} labels, and the model has {written[0]}: write so many into its id2label, in"
            " the order in which the model was trained"
        )
    return "take the config.json that was saved with these weights"


def _some(names: Iterable[str]) -> str:
    first = sorted(names)
    return ", ".join(first[:3]) + (" ..." if len(first) > 3 else "")


def head_of(params: Params, config: BertConfig) -> str:
    """The name of a model's head, a row of `HEADS`; "encoder" if it has no head."""
    return next((name for name, row in HEADS.items() if row.is_in(params, config)), "encoder")


def architecture(params: Params, config: BertConfig) -> str:
    """The name of the class of `transformers` that holds these parameters."""
    if "seq_relationship" in params.get("cls", {}):
        return f"{config.family.architecture}ForPreTraining"
    return config.family.architecture + HEADS[head_of(params, config)].architecture


def _named_head(config: BertConfig, tensors: Iterable[str]) -> str | None:
    """The head in `Family.head_names` whose tensors the file holds; None if there is none."""
    paths = [tuple(name.split(".")) for name in tensors]
    for head, pairs in config.family.head_names.items():
        if all(any(path[: len(beginning)] == beginning for path in paths) for _, beginning in pairs):
            return head
    return None
