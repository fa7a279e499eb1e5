"""What a BERT is, and the types that all modules share. Imports no array library, so `--help` is instant."""

from __future__ import annotations

import dataclasses
import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

Params = dict[str, Any]  # a nested dict of arrays
Preset = Literal["default", "paper", "official"]
LayerMap = Literal["uniform", "top", "bottom"] | tuple[int, ...]
Head = Literal["encoder", "sequence", "tokens", "span", "masked_lm"]
ObjectiveName = Literal["supervised", "masked_lm", "transformer", "prediction"]
Start = Literal["random", "copy", "spectral"]
ScheduleName = Literal["constant", "linear"]
ComputeDtype = Literal["float32", "bfloat16"]

RUN_FIELDS = ("compute_dtype", "remat", "vocab_multiple")  # of a BertConfig: a run's, never written to config.json
AXES = ("data", "fsdp", "model", "member")  # of a device mesh
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "tanh")
MIN_LENGTH = 8  # tokens of the longest text that a run or a tokenizer may allow
MASKED_SHARE = 4  # a quarter of a sequence's positions reach the masked-LM decoder
MAX_SIZE = 2**31 - 1  # ids are int32
MAX_LABELS = 2**20  # that a config may ask for by their number alone: each is made a name at once


class InputError(Exception):
    """Something the user gave is wrong. One line: what, where (`file:line`), and what to do. Exit code 2.

    No ValueError: the command-line parser would catch it and print its own page instead of the line.
    """

    def __init__(self, message: str) -> None:
        # A name that is quoted from a file (a column, a tensor) may break the line, or be no text at all.
        unprintable = "[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]"
        super().__init__(re.sub(unprintable, lambda found: repr(found[0])[1:-1], message))


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Experiment files pass no command-line parser, so a misspelt choice must be caught here.

    Raises:
        InputError: the value is none of the Literal `choices`.
    """
    if value not in get_args(choices):
        raise InputError(f"{name} is {value!r}; it must be one of {', '.join(get_args(choices))}")


def check_seed(name: str, seed: int) -> None:
    """A larger seed would give the keys of a smaller one.

    Raises:
        InputError: it is none.
    """
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise InputError(f"{name} is {seed}; it must be a whole number in [0, 2**32)")


class Batch(NamedTuple):
    """One global batch. 0 in `example_mask` marks a row that only fills the batch; every mean over examples divides by
    the sum of `example_mask`.

    `labels` are class ids or float targets [b]; first and last token of an answer [b, 2]; or a class or token id per
    token [b, q], -1 where none counts. `teacher_inputs` are the first three fields in the teacher's own vocabulary,
    where it has another one; `targets`, what the objective's `targets` gave for these rows, where that is known.
    """

    input_ids: Any  # int32 [b, q]
    attention_mask: Any  # int32 [b, q], 1 on real tokens
    token_type_ids: Any  # int32 [b, q]
    labels: Any  # int32 or float32 [b], int32 [b, 2] or [b, q]
    example_mask: Any  # float32 [b]
    teacher_inputs: tuple[Any, Any, Any] | None = None  # int32 [b, k], k not always q
    targets: Any = None  # a pytree of arrays with the rows on axis 0


class Hyper(NamedTuple):
    """The numbers one sweeps. They are arguments of the compiled step, so another float is no recompilation."""

    learning_rate: Any = 5e-5
    temperature: Any = 1.0
    embedding_weight: Any = 1.0
    attention_weight: Any = 1.0
    hidden_weight: Any = 1.0


@dataclass(frozen=True)
class BertConfig:
    """A BERT encoder and its heads, in Hugging Face's field names.

    Raises:
        InputError: `num_attention_heads` does not divide `hidden_size` (and no `head_dim` is given), a number is out
            of its range, or the activation is unknown.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    id2label: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem_type: str | None = None
    head_dim: int | None = None  # None: hidden_size / num_attention_heads; a pruned model names its own
    compute_dtype: ComputeDtype = "float32"  # parameters are always float32
    remat: bool = False  # the backward pass computes a layer's activations again instead of keeping them
    vocab_multiple: int = 1  # the embedding table is padded to a multiple of it, so that devices can share its rows

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "type_vocab_size",
            "vocab_multiple",
            "head_dim",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
            if value is not None and value > MAX_SIZE:
                raise InputError(f"{name} is {value}; it must be at most {MAX_SIZE}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:  # NaN is not either
                raise InputError(f"{name} is {value}; it must be in [0, 1)")
        if not 0 <= self.initializer_range < math.inf:
            raise InputError(f"initializer_range is {self.initializer_range}; it must be finite and not negative")
        if not 0 < self.layer_norm_eps < math.inf:
            raise InputError(f"layer_norm_eps is {self.layer_norm_eps}; it must be finite and greater than 0")
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise InputError(f"pad_token_id is {self.pad_token_id}; it must be in [0, vocab_size = {self.vocab_size})")
        if not self.id2label:
            raise InputError("id2label is empty; a model has at least one output")
        check_choice("compute_dtype", self.compute_dtype, ComputeDtype)
        if self.hidden_act not in ACTIVATIONS:
            raise InputError(f"hidden_act {self.hidden_act!r} is not supported; known are {', '.join(ACTIVATIONS)}")
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"num_attention_heads {self.num_attention_heads} does not divide hidden_size {self.hidden_size}"
            )

    @property
    def num_labels(self) -> int:
        return len(self.id2label)

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the word embedding table; those past `vocab_size` are no words, and are never exported."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def attention_head_dim(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def all_head_size(self) -> int:
        """Width of all attention heads together."""
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> BertConfig:
        """The config of a Hugging Face `config.json`.

        Raises:
            InputError: names what this model cannot do (another architecture, relative positions, a decoder, ...).
        """
        if (hf.get("model_type") or "bert") != "bert":
            raise InputError(f"model_type {hf['model_type']!r} is not supported; only 'bert' is")
        if (hf.get("position_embedding_type") or "absolute") != "absolute":
            raise InputError(f"position_embedding_type {hf['position_embedding_type']!r} is not supported")
        for name in ("is_decoder", "add_cross_attention", "pruned_heads"):
            if hf.get(name):
                raise InputError(f"{name} is set: only unpruned encoders are supported")
        values = {
            field.name: _hf_value(field.name, hf[field.name], str(field.type))
            for field in dataclasses.fields(cls)
            if field.name not in ("id2label", *RUN_FIELDS) and hf.get(field.name) is not None
        }
        if hf.get("id2label"):
            values["id2label"] = _hf_labels(hf["id2label"])
        elif hf.get("num_labels"):
            count = _hf_value("num_labels", hf["num_labels"], "int")
            if not 0 < count <= MAX_LABELS:
                raise InputError(f"num_labels is {count}; it must be in [1, {MAX_LABELS}]")
            values["id2label"] = tuple(f"LABEL_{i}" for i in range(count))
        return cls(**values)

    def to_hf(self) -> dict[str, Any]:
        """The content of a Hugging Face `config.json`, without `architectures`."""
        hf = dataclasses.asdict(self)
        for name in RUN_FIELDS:
            del hf[name]
        if self.head_dim is None:
            del hf["head_dim"]
        hf["id2label"] = {str(i): label for i, label in enumerate(self.id2label)}
        hf["label2id"] = {label: i for i, label in enumerate(self.id2label)}
        return hf | {"model_type": "bert", "position_embedding_type": "absolute"}


def _hf_value(name: str, value: Any, annotation: str) -> Any:
    """A value of a `config.json`, checked to be of the kind that the field's annotation names."""
    kind = annotation.removesuffix(" | None")
    # true counts as 1 in Python; and JSON writes 0.0 as 0
    if isinstance(value, {"int": int, "float": int | float, "str": str}[kind]) and not isinstance(value, bool):
        try:
            return float(value) if kind == "float" else value
        except OverflowError:
            return math.inf  # which no field allows
    wanted = {"int": "a whole number", "float": "a number", "str": "a string"}[kind]
    raise InputError(f"{name} is {reprlib.repr(value)}; it must be {wanted}")


def _hf_labels(id2label: Any) -> tuple[str, ...]:
    if not isinstance(id2label, Mapping):
        raise InputError(f"id2label is {reprlib.repr(id2label)}; it must be an object of ids and names")
    labels = {str(i): label for i, label in id2label.items()}
    ids = [str(i) for i in range(len(id2label))]
    if labels.keys() != set(ids):
        raise InputError(f"id2label has the ids {reprlib.repr(sorted(labels))}; they must count from 0 without a gap")
    for i, label in labels.items():
        if not isinstance(label, str | int | float) or re.search("[\0\ud800-\udfff]", str(label)):
            named = f"id2label[{i!r}] is {reprlib.repr(label)}"
            raise InputError(f"{named}; it must be a string without NUL and without half a surrogate pair")
    return tuple(str(labels[i]) for i in ids)


STUDENTS: dict[str, dict[str, Any]] = {
    "tinybert-4l-312d": {"num_hidden_layers": 4, "hidden_size": 312, "intermediate_size": 1200},
    "tinybert-6l-768d": {"num_hidden_layers": 6, "hidden_size": 768, "intermediate_size": 3072},
    "tinybert-3l-192d": {"num_hidden_layers": 3, "hidden_size": 192, "intermediate_size": 768},
}


def student_config(name: str, teacher: BertConfig) -> BertConfig:
    """The config of a preset student; vocabulary, labels and all else are the teacher's.

    The first two are the paper's TinyBERT4 and TinyBERT6 (arXiv 1909.10351, section 4.2); the 3-layer one is the
    small student of the quickstart. The attention heads are as many as the teacher's where those divide the preset's
    width, else 12.

    Raises:
        InputError: the preset is unknown.
    """
    if name not in STUDENTS:
        raise InputError(f"unknown student preset {name!r}; known are {', '.join(STUDENTS)}")
    shape = STUDENTS[name]
    heads = teacher.num_attention_heads if shape["hidden_size"] % teacher.num_attention_heads == 0 else 12
    return dataclasses.replace(teacher, head_dim=None, num_attention_heads=heads, **shape)
