"""Frozen descriptions of models, stages and experiments. Imports no array library, so `--help` is instant."""

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
StageName = Literal["supervised", "masked_lm", "transformer", "prediction"]
Start = Literal["random", "copy", "spectral"]
ScheduleName = Literal["constant", "linear"]
ComputeDtype = Literal["float32", "bfloat16"]

RUN_FIELDS = ("compute_dtype", "remat", "vocab_multiple")  # of a BertConfig, and of no file
AXES = ("data", "fsdp", "model", "member")  # of a device mesh
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "tanh")
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


def _check_choice(name: str, value: Any, choices: Any) -> None:
    """Experiment files pass no command-line parser, so a misspelt choice must be caught here."""
    if value not in get_args(choices):
        raise InputError(f"{name} is {value!r}; it must be one of {', '.join(get_args(choices))}")


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
        _check_choice("compute_dtype", self.compute_dtype, ComputeDtype)
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

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> BertConfig:
        """The config of a Hugging Face `config.json`.

        Raises:
            InputError: names what this model cannot do (another architecture, relative positions, a decoder, ...).
        """
        if hf.get("model_type", "bert") != "bert":
            raise InputError(f"model_type {hf['model_type']!r} is not supported; only 'bert' is")
        if hf.get("position_embedding_type", "absolute") != "absolute":
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


def student_config(preset: str, teacher: BertConfig) -> BertConfig:
    """The config of a preset student; vocabulary, labels and all else are the teacher's.

    The first two are the paper's TinyBERT4 and TinyBERT6 (arXiv 1909.10351, section 4.2); the 3-layer one is the
    small student of the quickstart. The attention heads are as many as the teacher's where those divide the preset's
    width, else 12.

    Raises:
        InputError: the preset is unknown.
    """
    if preset not in STUDENTS:
        raise InputError(f"unknown student preset {preset!r}; known are {', '.join(STUDENTS)}")
    shape = STUDENTS[preset]
    heads = teacher.num_attention_heads if shape["hidden_size"] % teacher.num_attention_heads == 0 else 12
    return dataclasses.replace(teacher, head_dim=None, num_attention_heads=heads, **shape)


@dataclass(frozen=True)
class DataSource:
    """Where rows come from: one of a directory in the GLUE layout, files of the user's own, or a prepared TFDS set.

    Raises:
        InputError: none, or more than one, of the three is given; there are more than two text columns.
    """

    data: str | None = None  # directory with the task's files: train.tsv, dev.tsv (and test.tsv)
    train: str | None = None  # .tsv, .csv or .jsonl; of squad .json, of ner any
    dev: str | None = None
    test: str | None = None
    tfds: str | None = None  # name of a prepared TensorFlow Datasets set, for example glue/sst2
    text_columns: tuple[str, ...] = ()  # one or two; default: the task's
    label_column: str | None = None  # default: the task's

    def __post_init__(self) -> None:
        files = any(file is not None for file in (self.train, self.dev, self.test))
        if sum([self.data is not None, files, self.tfds is not None]) != 1:
            raise InputError("give the data in one way: --data DIR, or --train FILE --dev FILE, or --tfds NAME")
        if len(self.text_columns) > 2:
            raise InputError(f"text_columns are {', '.join(self.text_columns)}; BERT reads one text, or a pair")


@dataclass(frozen=True)
class CorpusSource:
    """Raw text for general distillation and masked-LM training, and how it is cut into sequences.

    Raises:
        InputError: no file is given, or a probability lies outside [0, 1].
    """

    files: tuple[str, ...]  # UTF-8 text, .gz too; or one directory of shards that were built before
    one_document_per_line: bool = False  # else documents are separated by blank lines
    pairs: bool = False  # half of the sequences are A and its continuation B, half A and a random B, as BERT's were
    short_sequence_probability: float = 0.1  # of a sequence that is cut to a random shorter length
    processes: int = 1  # that build the shards; the shards do not depend on it

    def __post_init__(self) -> None:
        if not self.files:
            raise InputError("a corpus needs at least one text file: give --corpus FILE")
        if not 0 <= self.short_sequence_probability <= 1:
            raise InputError(f"short_sequence_probability is {self.short_sequence_probability}; it must be in [0, 1]")
        if self.processes < 1:
            raise InputError(f"processes is {self.processes}; it must be at least 1")


@dataclass(frozen=True)
class Stage:
    """One call of the training loop: what it minimises, for how long, how fast."""

    objective: StageName
    epochs: int = 3
    max_steps: int | None = None  # end the stage after this many steps, should that come before `epochs`
    batch_size: int = 32
    learning_rate: float = 5e-5
    schedule: ScheduleName = "linear"
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    temperature: float = 1.0
    embedding_weight: float = 1.0
    attention_weight: float = 1.0
    hidden_weight: float = 1.0
    masking_probability: float = 0.15  # of a token in `masked_lm`; in the other stages nothing is masked
    accumulation_steps: int = 1  # parts that a batch is computed in, one after the other, to save memory
    evaluate_every: int | None = None  # steps; None: after every epoch

    def __post_init__(self) -> None:
        _check_choice("objective", self.objective, StageName)
        _check_choice("schedule", self.schedule, ScheduleName)
        optional = [name for name in ("max_steps", "evaluate_every") if getattr(self, name) is not None]
        for name in ("epochs", "batch_size", "accumulation_steps", *optional):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is {value}; it must be a whole number, at least 1")
        for name in ("learning_rate", "temperature"):
            if not getattr(self, name) > 0:  # NaN is not either
                raise InputError(f"{name} is {getattr(self, name)}; it must be greater than 0")
        for name in ("weight_decay", "embedding_weight", "attention_weight", "hidden_weight"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must not be negative")
        if self.batch_size % self.accumulation_steps:
            raise InputError(
                f"accumulation_steps {self.accumulation_steps} does not divide the batch size {self.batch_size}"
            )
        if not 0 < self.masking_probability <= 0.2:  # the decoder runs on a quarter of the positions
            raise InputError(f"masking_probability is {self.masking_probability}; it must be above 0, and at most 0.2")
        if not 0 <= self.warmup_ratio < 1:
            raise InputError(f"warmup_ratio is {self.warmup_ratio}; it must be in [0, 1)")

    @property
    def hyper(self) -> Hyper:
        return Hyper(*(getattr(self, name) for name in Hyper._fields))


@dataclass(frozen=True)
class Experiment:
    """Everything that determines a run's result, beside the data itself and the device count."""

    task: str  # a row of the task table; "corpus" for general distillation and masked-LM training
    source: DataSource | CorpusSource
    model: str  # what is trained: a Hugging Face directory, a hub id, or (with a teacher) a student preset
    stages: tuple[Stage, ...]
    teacher: str | None = None  # a Hugging Face directory or hub id
    preset: Preset = "default"
    layer_map: LayerMap = "uniform"
    start: Start = "random"  # where a student preset starts
    augmented: str | None = None  # a directory that `tinybert augment` wrote; its variants are trained on
    max_length: int = 128
    compute_dtype: ComputeDtype = "float32"
    remat: bool = False  # compute activations again in the backward pass: less memory, a third more work
    checkpoint_every: int = 500  # steps; a checkpoint is also written at every evaluation and on SIGTERM and Ctrl-C
    teacher_cache_gb: float = 20.0  # of disk for the teacher's answers, where rows are read more than once
    seed: int = 0
    data_seed: int | None = None  # of the order of the rows, masking and augmentation; default: `seed`

    @property
    def order_seed(self) -> int:
        return self.seed if self.data_seed is None else self.data_seed

    def __post_init__(self) -> None:
        _check_choice("preset", self.preset, Preset)
        _check_choice("compute_dtype", self.compute_dtype, ComputeDtype)
        if isinstance(self.layer_map, str):
            _check_choice("layer_map", self.layer_map, get_args(LayerMap)[0])
        if not self.stages:
            raise InputError("an experiment needs at least one stage")
        _check_choice("start", self.start, Start)
        corpus = isinstance(self.source, CorpusSource)
        if corpus != (self.task == "corpus"):
            raise InputError(f"task {self.task!r} and a {type(self.source).__name__} do not go together")
        allowed = {"masked_lm", "transformer"} if corpus else {"supervised", "transformer", "prediction"}
        for stage in self.stages:
            if stage.objective not in allowed:
                raise InputError(f"stage {stage.objective!r} is not one of task {self.task!r}")
        if self.start != "random" and self.model not in STUDENTS:
            raise InputError(f"start {self.start!r} is for a student preset; {self.model!r} brings its own parameters")
        if any(stage.objective in ("transformer", "prediction") for stage in self.stages) and self.teacher is None:
            raise InputError("what is distilled needs a teacher: give --teacher DIR")
        if self.model in STUDENTS and self.teacher is None:
            raise InputError(
                f"student preset {self.model!r} takes its vocabulary from a teacher: give --teacher DIR, or a"
                " directory as --student"
            )
        if self.max_length < 8:
            raise InputError(f"max_length is {self.max_length}; it must be at least 8")
        if self.checkpoint_every < 1:
            raise InputError(f"checkpoint_every is {self.checkpoint_every}; it must be at least 1")
        if not self.teacher_cache_gb >= 0:
            raise InputError(f"teacher_cache_gb is {self.teacher_cache_gb}; it must not be negative")
        if min(self.seed, self.order_seed) < 0:
            raise InputError(f"seed is {min(self.seed, self.order_seed)}; it must not be negative")
