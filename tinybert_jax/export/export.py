"""Export of a model directory: write it in other formats, run the files, and compare their outputs with the model."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array

from tinybert_jax.batch import Params
from tinybert_jax.compression.links import markdown
from tinybert_jax.data.batches import bucket_lengths, eval_batches
from tinybert_jax.data.tokens import Tokens, encode
from tinybert_jax.errors import InputError, check_choice, check_unused
from tinybert_jax.inference.exported import (
    ONNX,
    ONNX_INT8,
    STABLEHLO,
    STABLEHLO_INT8,
    STABLEHLO_PARAMS,
    load_step,
    program_files,
)
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.files.card import front_matter, read_metadata, read_results, shown
from tinybert_jax.models.files.directory import load_hf, save_description
from tinybert_jax.models.files.frame import frame_of
from tinybert_jax.models.files.hub import CARD, hub_id
from tinybert_jax.models.files.tensors import head_of
from tinybert_jax.models.files.tokenizer import all_tokens, load_tokenizer, trained_length, whole_words, write_words
from tinybert_jax.models.files.weights import write_tensors
from tinybert_jax.models.heads import EACH, HEADS, head_losses
from tinybert_jax.models.quantized import quantized
from tinybert_jax.settings.choices import ExportFormat

PLATFORMS = ("cpu", "cuda", "tpu")  # of a StableHLO program
ROWS, WORDS, LONGEST = 64, 64, 128  # number of random rows to compare; words and tokens of the longest row
MOST_ROWS, BATCH_SIZE = 1000, 4  # largest number of texts to compare; few at once, as outputs may be very wide
LOADS = """
```python
import tinybert_jax as tb
predict = tb.load_predictor("this directory")
```
"""


class Exported(NamedTuple):
    """A written file, and how its outputs differ from the model's on the compared rows."""

    file: Path
    bytes: int
    difference: float  # the largest absolute difference of outputs
    error: float  # the root mean square of the differences, over the standard deviation of the model's outputs
    agreement: float | None  # the share of rows, tokens or answers with the same label; None: no classes


class Format(NamedTuple):
    """A row of the table of formats."""

    path: str  # in the directory
    write: Callable[[BertConfig, Params, int, Path], None]  # config, params, bits of weights, file
    largest_error: float  # a file with a larger `Exported.error` is refused
    advice: str = ""  # then, what else to try
    in_int8: bool = False


def export_model(
    model: str,
    out: str | Path,
    formats: Sequence[str] = ("onnx",),
    weight_bits: int = 7,
    texts: Sequence[str] | None = None,
) -> list[Exported]:
    """Write a model for deployment, with its config and tokenizer. Each file is run and compared with the model.

    Args:
        model: Hugging Face directory or hub id of a model, with any head or none.
        out: a new or empty directory. It gets the layout of optimum, sentence-transformers and transformers.js.
        formats: rows of FORMATS: "onnx", "onnx-int8", "stablehlo", "stablehlo-int8".
        weight_bits: for "onnx-int8": 7 is correct on all processors; 8 needs VNNI, AMX or ARM. A model that is
            quantised to fewer bits keeps these.
        texts: the texts for the comparison; default: random words.

    Raises:
        InputError: the model cannot be read, `out` is not empty, a package is missing, the format is in floats and the
            model is quantised, or a file differs from the model by more than its format allows.
    """
    for name in formats:
        check_choice("to", name, ExportFormat)
    if weight_bits not in (7, 8):
        raise InputError(f"weight_bits is {weight_bits}; it must be 7 or 8")
    out = Path(out)
    check_unused(out)
    config, params = load_hf(model)
    floats = [name for name in formats if not FORMATS[name].in_int8]
    if config.weight_bits is not None and floats:
        in_int8 = " or ".join(name for name, row in FORMATS.items() if row.in_int8)
        raise InputError(f"{model}: is quantised, so {' and '.join(floats)} would be another model: take {in_int8}")
    tokenizer = load_tokenizer(model, config)
    length = min(trained_length(tokenizer, config), LONGEST)
    compared = (texts or _random_texts(tokenizer))[:MOST_ROWS]
    rows = encode([(text,) for text in compared], tokenizer, length)
    place = Path(os.path.realpath(out))  # `.` and a link cannot be replaced
    place.parent.mkdir(parents=True, exist_ok=True)
    # renamed at the end, so a failure leaves nothing behind
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}-") as folder:
        written = Path(folder) / "export"
        save_description(written, config, params, tokenizer)
        results = []
        for name in formats:
            row = FORMATS[name]
            file = written / row.path
            file.parent.mkdir(exist_ok=True)
            row.write(config, params, weight_bits, file)
            with _on_the_cpu():
                result = _compare(file, config, params, rows, length)
            if not result.error <= row.largest_error:
                raise InputError(
                    f"{model}: as {name}, its outputs are {result.error:.2g} standard deviations off, and at most"
                    f" {row.largest_error:.2g} are allowed; nothing is written{row.advice}"
                )
            results.append(result._replace(file=out / row.path))
        relative = [result._replace(file=result.file.relative_to(out)) for result in results]
        (written / CARD).write_text(_card(model, config, head_of(params, config), formats, relative), "utf-8")
        if place.exists():
            place.rmdir()
        written.rename(place)
    return results


def _on_the_cpu() -> contextlib.AbstractContextManager[Any]:
    """A context in which JAX computes on the CPU, if JAX_PLATFORMS allows it. Other devices round products more than
    the comparison allows.
    """
    try:
        return jax.default_device(jax.devices("cpu")[0])
    except RuntimeError:
        return contextlib.nullcontext()


def table(results: Sequence[Exported]) -> tuple[list[str], list[list[str]]]:
    """A table, header and rows, of the written files and their differences from the model."""
    header = ["file", "MB", "largest difference", "error / standard deviation", "same labels"]
    rows = [
        [
            str(result.file),
            f"{result.bytes / 1e6:.1f}",
            f"{result.difference:.1e}",
            f"{result.error:.1e}",
            "-" if result.agreement is None else f"{result.agreement:.1%}",
        ]
        for result in results
    ]
    return header, rows


def _card(model: str, config: BertConfig, head: str, formats: Sequence[str], results: Sequence[Exported]) -> str:
    """The `README.md` of the directory. It has the model's scores only for files in floats, as int8 changes them."""
    title = f"{shown(model)}, exported"
    of_model: dict[str, Any] = {} if hub_id(model) else read_metadata(model)
    in_int8 = [FORMATS[name].in_int8 for name in formats]
    onnx = any(FORMATS[name].path.endswith(".onnx") for name in formats)
    metadata = front_matter(
        title,
        config,
        [model],
        library="transformers.js" if onnx and config.loads_in_transformers else "tinybert_jax",
        in_int8=all(in_int8),
        results=[] if any(in_int8) else read_results(of_model),
        datasets=of_model.get("datasets", ()),
        pipeline_tag=of_model.get("pipeline_tag", HEADS[head].pipeline),
        tags=[*dict.fromkeys(name.partition("-")[0] for name in formats), config.model_type],
    )
    text = f"""{metadata}# {title}
Written by tinybert_jax. Each file was run, and its outputs compared with the model's.

{markdown(*table(results))}
"""
    return text + LOADS if HEADS[head].on_tasks else text


def _random_texts(tokenizer: Any) -> list[str]:
    """Texts of up to WORDS random words of the vocabulary, the same every time."""
    random, frame = np.random.default_rng(0), frame_of(tokenizer)
    tokens, words = all_tokens(tokenizer), np.flatnonzero(whole_words(tokenizer))
    return [
        write_words(tokenizer, frame, [tokens[i] for i in random.choice(words, random.integers(1, WORDS + 1))])
        for _ in range(ROWS)
    ]


def program(config: BertConfig, params: Params) -> Callable[..., Array]:
    """The pure function `(params, input_ids, attention_mask, token_type_ids) -> outputs` of a model.

    Outputs are the logits, or the vectors of texts; without a head, the last hidden states.
    """
    head = head_of(params, config)
    if HEADS[head].key is None:
        model: Any = HEADS[head].model(config, add_pooler=False)

        def states(params: Params, *inputs: Array) -> Array:
            bare = {name: part for name, part in params["encoder"].items() if name != "pooler"}
            return model.apply({"params": bare}, *inputs, score_layers=()).last_hidden_state

        return states
    with_head: Any = HEADS[head].model(config)
    return lambda params, *inputs: with_head.apply({"params": params}, *inputs, score_layers=()).logits


def _compare(file: Path, config: BertConfig, params: Params, rows: Tokens, length: int) -> Exported:
    """How the outputs of a written file differ from the model's on real tokens."""
    head = head_of(params, config)
    run, placed, step = jax.jit(program(config, params)), jax.device_put(params), load_step(file)
    axis = head_losses(head, config).class_axis if HEADS[head].losses else None
    worst, squares, count, same, labels = 0.0, 0.0, 0, 0, 0
    moments = np.zeros(2)
    for numbers, batch in eval_batches(rows, BATCH_SIZE, bucket_lengths(length)):
        expected = np.asarray(run(placed, *(jnp.asarray(array) for array in batch[:3])))
        outputs = np.asarray(step({}, batch))
        real = np.asarray(batch.attention_mask) > 0 if expected.ndim == 3 else numbers >= 0
        difference = (outputs[real] - expected[real]).astype(np.float64)
        worst = max(worst, float(np.abs(difference).max()))
        squares, count = squares + float(np.square(difference).sum()), count + difference.size
        moments += [expected[real].sum(dtype=np.float64), np.square(expected[real], dtype=np.float64).sum()]
        if axis == 1:  # the classes are positions
            best = [np.where(real[:, :, None], x, -np.inf).argmax(axis=1)[numbers >= 0] for x in (outputs, expected)]
        elif axis == EACH:
            best = [x[real] > 0 for x in (outputs, expected)]
        elif axis is not None:
            best = [x[real].argmax(axis=axis) for x in (outputs, expected)]
        else:
            continue
        same, labels = same + int((best[0] == best[1]).sum()), labels + best[0].size
    mean, square = moments / count
    # a single output has no standard deviation, so its size is used
    deviation = max(float(np.sqrt(max(square - mean**2, 0.0))), 1e-2 * float(np.sqrt(square)))
    error = float(np.sqrt(squares / count)) / deviation
    size = sum(part.stat().st_size for part in program_files(file))
    return Exported(file, size, worst, error, same / labels if labels else None)


def _write_onnx(config: BertConfig, params: Params, weight_bits: int | None, file: Path) -> None:
    try:
        from tinybert_jax.export.onnx_model import onnx_model
    except ModuleNotFoundError as error:
        raise InputError(
            f"ONNX files need the package {error.name}: in the clone of tinybert_jax, pip install '.[onnx]'"
        ) from None
    file.write_bytes(onnx_model(config, params, weight_bits).SerializeToString())


def _write_stablehlo(config: BertConfig, params: Params, weight_bits: int, file: Path) -> None:
    """Write a program for all PLATFORMS and any number of rows and tokens, and its parameters to a separate file."""
    size = jax.export.symbolic_shape("b, q", constraints=[f"q <= {config.max_tokens}"])
    described = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    inputs = [jax.ShapeDtypeStruct(size, jnp.int32)] * 3
    exported = jax.export.export(jax.jit(program(config, params)), platforms=PLATFORMS)(described, *inputs)
    file.write_bytes(exported.serialize())
    flat = {"/".join(path): np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(params).items()}
    write_tensors(file.parent / STABLEHLO_PARAMS, flat)


def _write_int8_stablehlo(config: BertConfig, params: Params, weight_bits: int, file: Path) -> None:
    _write_stablehlo(*quantized(config, params), weight_bits, file)


FORMATS: dict[str, Format] = {
    "onnx": Format(ONNX, lambda config, params, bits, file: _write_onnx(config, params, None, file), 1e-4),
    "onnx-int8": Format(
        ONNX_INT8,
        _write_onnx,
        0.3,
        ": take weight_bits 8 where its processors allow it, or a format in floats",
        True,
    ),
    "stablehlo": Format(STABLEHLO, _write_stablehlo, 1e-4),
    "stablehlo-int8": Format(STABLEHLO_INT8, _write_int8_stablehlo, 0.3, ": take a format in floats", True),
}
