"""The words that settings may use. Imports no array library, so `--help` is instant."""

from __future__ import annotations

from typing import Any, Literal

Preset = Literal["default", "paper", "official"]
Start = Literal["random", "copy", "spectral"]
ScheduleName = Literal["constant", "linear"]
OptimizerName = Literal["adamw", "bert_adam"]
ComputeDtype = Literal["float32", "bfloat16"]
AXES = ("data", "fsdp", "model", "member")  # of a device mesh
MIN_LENGTH = 8  # tokens of the longest text that a run or a tokenizer may allow
STUDENTS: dict[str, dict[str, Any]] = {
    "tinybert-4l-312d": {"num_hidden_layers": 4, "hidden_size": 312, "intermediate_size": 1200},
    "tinybert-6l-768d": {"num_hidden_layers": 6, "hidden_size": 768, "intermediate_size": 3072},
    "tinybert-3l-192d": {"num_hidden_layers": 3, "hidden_size": 192, "intermediate_size": 768},
}
