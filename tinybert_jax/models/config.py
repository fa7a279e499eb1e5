"""The configuration of a BERT, from and to a Hugging Face `config.json`."""

from __future__ import annotations

import dataclasses
import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from tinybert_jax.errors import InputError, check_choice
from tinybert_jax.models.families import FAMILIES, KNOWN, Family
from tinybert_jax.settings.choices import WEIGHT_BITS, ComputeDtype
from tinybert_jax.settings.tasks import MULTI_LABEL

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "tanh")
MAX_SIZE = 2**31 - 1  # ids are int32
SLIM = "slim-"  # before the `model_type` of a shape that no class of `transformers` has
OBJECTS = ("id2label", "ranks")  # fields that are objects in a `config.json`
ELSEWHERE = ("model_type", "embedding", "score_activation")  # fields that are not read as a `config.json` has them
PoolingName = Literal["cls", "mean", "max"]
DenseActivation = Literal["Identity", "Tanh"]  # as torch and ONNX call them
MAX_LABELS = 2**20  # that a config may ask for by their number alone: each is made a name at once


@dataclass(frozen=True)
class Compute:
    """How a model is computed. A run decides it; it is no part of the model and never written beside it.

    Raises:
        InputError: the dtype is unknown, or `vocab_multiple` is below 1.
    """

    dtype: ComputeDtype = "float32"  # of activations and products; parameters are float32
    remat: bool = False  # the backward pass recomputes a layer's activations instead of keeping them
    vocab_multiple: int = 1  # the embedding table is padded to a multiple of it, so that devices can share its rows

    def __post_init__(self) -> None:
        check_choice("compute_dtype", self.dtype, ComputeDtype)
        if self.vocab_multiple < 1:
            raise InputError(f"vocab_multiple is {self.vocab_multiple}; it must be at least 1")

    def vocab_rows(self, config: BertConfig) -> int:
        """Rows of the word embedding table; those past `vocab_size` are no words, and are never exported."""
        return -(-config.vocab_size // self.vocab_multiple) * self.vocab_multiple


DEFAULT = Compute()


class Ranks(NamedTuple):
    """The ranks of the tables and dense layers that are products of two factors; 0: it is one matrix.

    All layers have the same ranks. Where a layer needs less, its factors end with zeros.
    """

    word_embeddings: int = 0
    query: int = 0
    key: int = 0
    value: int = 0
    attention_output: int = 0
    intermediate: int = 0
    output: int = 0


FULL_RANK = Ranks()


EMBEDDING_DENSE = "embedding_dense"  # the layer behind the pooling, among parameters


class TextVector(NamedTuple):
    """How a text's vector is made of the states of its tokens, as the modules of sentence-transformers say it."""

    pooling: PoolingName = "mean"  # the state of the first token, or the mean or maximum over real tokens
    width: int | None = None  # of the vector behind a dense layer; None: it is as wide as the states
    normalize: bool = False  # the vector is divided by its norm
    prompts: tuple[tuple[str, str], ...] = ()  # names and texts that may be put before a text, as "query"
    activation: DenseActivation = "Identity"  # of the dense layer
    default_prompt: str | None = None  # the name of the prompt before every text

    @property
    def prompt(self) -> str:
        """What stands before every text; "" where nothing does."""
        return "" if self.default_prompt is None else dict(self.prompts)[self.default_prompt]


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
    type_vocab_size: int = 2  # 0: the family has no token types
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    id2label: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem_type: str | None = None
    head_dim: int | None = None  # None: hidden_size / num_attention_heads; a pruned model names its own
    num_hidden_groups: int | None = None  # of layers that share their parameters; in ALBERT, by default all are unlike
    embedding_size: int | None = None  # of ALBERT and ELECTRA; by default hidden_size
    ranks: Ranks = FULL_RANK  # of what is factorised
    weight_bits: int | None = None  # dense layers multiply in int8, with weights rounded to so many bits; None: floats
    model_type: str = "bert"  # a row of the table of families
    embedding: TextVector | None = None  # of a model whose output is a text's vector; a `modules.json` says it
    score_activation: str | None = None  # behind the one output in sentence-transformers; not computed here

    def __post_init__(self) -> None:
        if self.model_type not in KNOWN:
            raise InputError(f"model_type {self.model_type!r} is not supported; known are {', '.join(FAMILIES)}")
        if self.family.shares_layers:
            object.__setattr__(self, "num_hidden_groups", self.layer_groups)
        if self.family.narrow_embeddings:
            object.__setattr__(self, "embedding_size", self.embedding_width)
        if self.family.word_rank is not None and self.ranks.word_embeddings in (0, self.hidden_size):
            # of the width of the layers, `transformers` leaves the projection out
            name = self.family.word_rank[0]
            raise InputError(f"{name} is {self.ranks.word_embeddings}; it must be neither 0 nor hidden_size")
        for name, fixed in self.family.fixed.items():
            if getattr(self, name) != fixed:
                raise InputError(f"{name} is {getattr(self, name)}; with model_type {self.model_type!r} it is {fixed}")
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "type_vocab_size",
            "head_dim",
            "num_hidden_groups",
            "embedding_size",
        ):
            value = getattr(self, name)
            if value is not None and value < 1 and name not in self.family.fixed:
                raise InputError(f"{name} is {value}; it must be at least 1")
            if value is not None and value > MAX_SIZE:
                raise InputError(f"{name} is {value}; it must be at most {MAX_SIZE}")
        for name, rank in self.ranks._asdict().items():
            if not 0 <= rank <= MAX_SIZE:
                raise InputError(f"ranks: {name} is {rank}; it must be in [0, {MAX_SIZE}]")
        if self.weight_bits is not None and self.weight_bits not in WEIGHT_BITS:
            known = f"{WEIGHT_BITS[0]} to {WEIGHT_BITS[-1]}"
            raise InputError(f"weight_bits is {self.weight_bits}; it must be {known}")
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
        if self.embedding is not None:
            check_choice("pooling", self.embedding.pooling, PoolingName)
        if not self.id2label:
            raise InputError("id2label is empty; a model has at least one output")
        if self.hidden_act not in ACTIVATIONS:
            raise InputError(f"hidden_act {self.hidden_act!r} is not supported; known are {', '.join(ACTIVATIONS)}")
        if self.num_hidden_layers % self.layer_groups:
            counts = f"num_hidden_groups {self.num_hidden_groups} does not divide num_hidden_layers"
            raise InputError(f"{counts} {self.num_hidden_layers}")
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"num_attention_heads {self.num_attention_heads} does not divide hidden_size {self.hidden_size}"
            )

    @property
    def num_labels(self) -> int:
        return len(self.id2label)

    @property
    def is_multi_label(self) -> bool:
        """Whether a text has any number of the labels, so that each output is a class of its own."""
        return self.problem_type == MULTI_LABEL.problem_type

    @property
    def vector_width(self) -> int:
        """Width of a text's vector."""
        return self.hidden_size if self.embedding is None else self.embedding.width or self.hidden_size

    @property
    def family(self) -> Family:
        """What is particular to encoders of this `model_type`."""
        return KNOWN[self.model_type]

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest row that the position embeddings allow."""
        return self.max_position_embeddings - self.first_position

    @property
    def first_position(self) -> int:
        """The row of the position embeddings that the first token of a text takes."""
        return self.pad_token_id + 1 if self.family.positions_after_padding else 0

    @property
    def attention_head_dim(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def layer_groups(self) -> int:
        """How many layers have parameters that are not another's."""
        return self.num_hidden_layers if self.num_hidden_groups is None else self.num_hidden_groups

    @property
    def embedding_width(self) -> int:
        """Width of the embedding tables."""
        return self.hidden_size if self.embedding_size is None else self.embedding_size

    @property
    def projects_embeddings(self) -> bool:
        """Whether a dense layer leads from the embeddings to the layers: in ALBERT always, in ELECTRA where widths
        differ.
        """
        return self.family.shares_layers or self.embedding_width != self.hidden_size

    @property
    def loads_in_transformers(self) -> bool:
        """Whether a class of `transformers` has this shape. It takes heads of hidden_size / num_attention_heads only,
        ignores `head_dim`, and has no factors but MobileBERT's of the word table. It ignores `weight_bits` too, and
        then computes in floats.
        """
        ranks = self.ranks if self.family.word_rank is None else self.ranks._replace(word_embeddings=0)
        return self.all_head_size == self.hidden_size and ranks == FULL_RANK

    @property
    def table_scale(self) -> float:
        """What the tables of the embeddings are multiplied by in files, as `Family.table_scale` says."""
        return self.family.table_scale(self.layer_norm_eps)

    @property
    def embeddings_eps(self) -> float:
        """The eps of the LayerNorm of the embeddings."""
        fixed = self.family.fixed_eps
        return self.layer_norm_eps if fixed is None else fixed / self.table_scale**2

    @property
    def feed_forward_eps(self) -> float:
        """The eps of the LayerNorm behind a feed-forward network."""
        return self.layer_norm_eps if self.family.fixed_eps is None else self.family.fixed_eps

    @property
    def classifier_dropout_rate(self) -> float:
        """Hugging Face's rule: `hidden_dropout_prob` unless `classifier_dropout` says otherwise."""
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout

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
        model_type = hf.get("model_type")
        model_type = _family_of_architectures(hf) if model_type is None else model_type
        if isinstance(model_type, str):
            model_type = model_type.removeprefix(SLIM)
        if not isinstance(model_type, str) or model_type not in KNOWN:
            known = ", ".join(map(repr, FAMILIES))
            raise InputError(f"model_type {model_type!r} is not supported; known are {known}")
        family = KNOWN[model_type]
        if (hf.get("position_embedding_type") or "absolute") != "absolute":
            raise InputError(f"position_embedding_type {hf['position_embedding_type']!r} is not supported")
        for name in ("is_decoder", "add_cross_attention", "pruned_heads"):
            if hf.get(name):
                raise InputError(f"{name} is set: only unpruned encoders are supported")
        if family.shares_layers and hf.get("inner_group_num", 1) != 1:
            raise InputError(f"inner_group_num is {hf['inner_group_num']!r}: only 1 is supported")
        for name, (value, default) in family.required.items():
            if hf.get(name, default) != value:
                only = f"{family.title} is supported where it is {value!r}"
                raise InputError(f"{name} is {reprlib.repr(hf.get(name, default))}: {only}")
        values = dict(family.defaults)
        for field in dataclasses.fields(cls):
            name = family.config_names.get(field.name, field.name)
            if field.name not in (*OBJECTS, *ELSEWHERE, *family.fixed) and hf.get(name) is not None:
                values[field.name] = _hf_value(name, hf[name], str(field.type))
        if hf.get("ranks") is not None:
            values["ranks"] = _hf_ranks(hf["ranks"])
        if family.word_rank is not None:
            name, default = family.word_rank
            rank = _hf_value(name, hf.get(name, default), "int")
            values["ranks"] = values.get("ranks", FULL_RANK)._replace(word_embeddings=rank)
        if hf.get("id2label"):
            values["id2label"] = _hf_labels(hf["id2label"])
        elif isinstance(hf.get("label2id"), Mapping) and hf["label2id"]:
            values["id2label"] = _hf_labels({i: label for label, i in hf["label2id"].items()})
        elif hf.get("num_labels"):
            count = _hf_value("num_labels", hf["num_labels"], "int")
            if not 0 < count <= MAX_LABELS:
                raise InputError(f"num_labels is {count}; it must be in [1, {MAX_LABELS}]")
            values["id2label"] = tuple(f"LABEL_{i}" for i in range(count))
        return cls(**values, **family.fixed, model_type=family.model_type)

    def to_hf(self) -> dict[str, Any]:
        """The content of a Hugging Face `config.json`, without `architectures`."""
        family = self.family
        values = {name: value for name, value in dataclasses.asdict(self).items() if name not in family.fixed}
        del values["embedding"], values["score_activation"]
        for name in ("head_dim", "weight_bits"):
            if values[name] is None:
                del values[name]
        values["ranks"] = {name: rank for name, rank in self.ranks._asdict().items() if rank}
        if family.word_rank is not None:
            values[family.word_rank[0]] = values["ranks"].pop("word_embeddings")
        if not values["ranks"]:
            del values["ranks"]
        if "classifier_dropout" in family.config_names:  # under that name, it must be a number
            values["classifier_dropout"] = self.classifier_dropout_rate
        hf = {family.config_names.get(name, name): value for name, value in values.items()}
        if self.score_activation is not None:
            hf["sentence_transformers"] = {"activation_fn": self.score_activation}
        hf |= {name: value for name, (value, _) in family.required.items()}
        if not self.loads_in_transformers:  # which would otherwise fail on the sizes of tensors, or ignore `head_dim`
            hf["model_type"] = SLIM + self.model_type
        hf["id2label"] = {str(i): label for i, label in enumerate(self.id2label)}
        hf["label2id"] = {label: i for i, label in enumerate(self.id2label)}
        return hf | {"position_embedding_type": "absolute"}


def _family_of_architectures(hf: Mapping[str, Any]) -> str:
    """The `model_type` of a `config.json` that has none, as those of 2019."""
    named = re.findall(r"(\w+?)(?:For|Model)", str(hf.get("architectures")))
    return next((row.model_type for row in FAMILIES.values() if row.architecture in named), "bert")


def _hf_value(name: str, value: Any, annotation: str) -> Any:
    """A value of a `config.json`, checked to be of the kind that the field's annotation names."""
    kind = annotation.removesuffix(" | None")
    # true counts as 1 in Python; and JSON writes 0.0 as 0
    if isinstance(value, {"int": int, "float": int | float, "str": str}[kind]) and not isinstance(value, bool):
        try:
            return float(value) if kind == "float" else value
        except OverflowError:
            return math.inf  # which no field allows
    kind_name = {"int": "a whole number", "float": "a number", "str": "a string"}[kind]
    raise InputError(f"{name} is {reprlib.repr(value)}; it must be {kind_name}")


def _hf_ranks(ranks: Any) -> Ranks:
    if not isinstance(ranks, Mapping) or not set(ranks) <= set(Ranks._fields):
        raise InputError(f"ranks is {reprlib.repr(ranks)}; it must be an object of {', '.join(Ranks._fields)}")
    return Ranks(**{name: _hf_value(f"ranks: {name}", rank, "int") for name, rank in ranks.items()})


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
