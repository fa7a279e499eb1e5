"""The words that settings may use. This module imports no array library, so `--help` is fast."""

from __future__ import annotations

import os
import re
from typing import Any, Literal

from tinybert_jax.errors import InputError

Preset = Literal["default", "paper", "official"]
NamedStart = Literal["random", "copy", "spectral"]
Start = Literal["auto", NamedStart]
FROM_LAYERS = ("copy", "spectral")  # the starts that use the mapped layers of a teacher
ScheduleName = Literal["constant", "linear"]
OptimizerName = Literal["adamw", "bert_adam"]
Criterion = Literal["sparsegpt", "wanda", "magnitude"]  # for choosing the single weights that become zero
GradualRule = Literal["fisher", "l0"]
SharedPart = Literal["attention", "feed_forward"]  # of a layer
ExportFormat = Literal["onnx", "onnx-int8", "stablehlo", "stablehlo-int8"]
ComputeDtype = Literal["float32", "bfloat16"]
AXES = ("data", "fsdp", "model", "member")  # of a device mesh
WEIGHT_BITS = range(2, 9)  # possible bits of the weights of dense layers
MIN_LENGTH = 8  # the smallest max_length of a run or a tokenizer, in tokens
EVAL_BATCH_SIZE = 64  # rows that are scored at once; the outputs of an exported int8 model depend on it a little
STUDENTS: dict[str, dict[str, Any]] = {
    "tinybert-4l-312d": {"num_hidden_layers": 4, "hidden_size": 312, "intermediate_size": 1200},
    "tinybert-6l-768d": {"num_hidden_layers": 6, "hidden_size": 768, "intermediate_size": 3072},
    "tinybert-3l-192d": {"num_hidden_layers": 3, "hidden_size": 192, "intermediate_size": 768},
}
SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")  # in the order of a size


def student_shape(model: str) -> dict[str, int] | None:
    """The sizes of a student that has no parameters yet, or None if `model` is a directory or a hub id.

    A student without parameters is a preset of STUDENTS or a size: LAYERSxWIDTH, LAYERSxWIDTHxFEED_FORWARD or
    LAYERSxWIDTHxFEED_FORWARDxHEADS. If a directory has a size as its name, it is taken as a directory.

    Raises:
        InputError: the size has another form, or a number below 1.

    >>> student_shape("6x384x1536")
    {'num_hidden_layers': 6, 'hidden_size': 384, 'intermediate_size': 1536}
    """
    if model in STUDENTS:
        return dict(STUDENTS[model])
    if os.path.isdir(model):
        return None
    meant = re.sub("by|[ ,*X_×-]+", "x", model)
    if meant != model and re.fullmatch("[0-9]+(x[0-9]+){1,3}", meant):
        raise InputError(f"student size {model!r}: a size is written as {meant}")
    if not re.fullmatch("(?=.*[0-9])[0-9x]*x[0-9x]*", model):
        return None
    numbers = [int(number) if 0 < len(number) < 10 else 0 for number in model.split("x")]
    if len(numbers) > len(SIZES) or min(numbers) < 1:
        raise InputError(
            f"student size {model!r}: give LAYERSxWIDTH (6x384), LAYERSxWIDTHxFEED_FORWARD (6x384x1536) or"
            " LAYERSxWIDTHxFEED_FORWARDxHEADS (6x384x1536x12), whole numbers, at least 1"
        )
    return dict(zip(SIZES, numbers, strict=False))
