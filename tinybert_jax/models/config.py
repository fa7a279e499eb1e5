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
SLIM = "slim-"  # prefix of the `model_type` of a shape that no class of `transformers` has
OBJECTS = ("id2label", "ranks")  # fields that are objects in a `config.json`
ELSEWHERE = ("model_type", "embedding", "score_activation")  # fields that a `config.json` does not hold as such
PoolingName = Literal["cls", "mean", "max"]
DenseActivation = Literal["Identity", "Tanh"]  # as torch and ONNX call them
MAX_LABELS = 2**20  # largest `num_labels` in a config without names: a name is made for each at once


@dataclass(frozen=True)
class Compute:
    """How a model is computed. This is a choice of the run, not part of the model, and is never saved with it.

    Raises:
        InputError: the dtype is unknown, or `vocab_multiple` is below 1.
    """

    dtype: ComputeDtype = "float32"  # of activations and products; parameters are float32
    remat: bool = False  # the backward pass recomputes a layer's activations instead of keeping them
    vocab_multiple: int = 1  # the word table is padded to a multiple of this, so that its rows can be sharded

    def __post_init__(self) -> None:
        check_choice("compute_dtype", self.dtype, ComputeDtype)
        if self.vocab_multiple < 1:
            raise InputError(f"vocab_multiple is {self.vocab_multiple}; it must be at least 1")

    def vocab_rows(self, config: BertConfig) -> int:
        """The number of rows of the word table. Rows past `vocab_size` are padding, and are never exported."""
        return -(-config.vocab_size // self.vocab_multiple) * self.vocab_multiple


DEFAULT = Compute()


class Ranks(NamedTuple):
    """The ranks of the word table and of dense layers that are products of two factors; 0: not factorised.

    All layers have the same ranks. If a layer needs a lower rank, its factors end with zeros.
    """

    word_embeddings: int = 0
    query: int = 0
    key: int = 0
    value: int = 0
    attention_output: int = 0
    intermediate: int = 0
    output: int = 0


FULL_RANK = Ranks()


EMBEDDING_DENSE = "embedding_dense"  # the parameters of the dense layer behind the pooling


class TextVector(NamedTuple):
    """How the vector of a text is computed from its tokens' states, as in the modules of sentence-transformers."""

    pooling: PoolingName = "mean"  # the state of the first token, or the mean or maximum over real tokens
    width: int | None = None  # width of the vector after a dense layer; None: no dense layer
    normalize: bool = False  # the vector is divided by its norm
    prompts: tuple[tuple[str, str], ...] = ()  # (name, text): texts that may be put before a text, such as "query"
    activation: DenseActivation = "Identity"  # of the dense layer
    default_prompt: str | None = None  # the name of the prompt that is put before every text

    @property
    def prompt(self) -> str:
        """The prompt that is put before every text; "" if there is none."""
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
    head_dim: int | None = None  # None: hidden_size / num_attention_heads; a model with pruned heads sets it
    num_hidden_groups: int | None = None  # groups of layers that share parameters; None: layers share nothing
    embedding_size: int | None = None  # in ALBERT and ELECTRA; None: hidden_size
    ranks: Ranks = FULL_RANK  # of factorised matrices
    weight_bits: int | None = None  # dense layers multiply in int8, with weights of this many bits; None: floats
    model_type: str = "bert"  # a row of the table of families
    embedding: TextVector | None = None  # for models that give vectors; read from `modules.json`
    score_activation: str | None = None  # that sentence-transformers applies to a reranker's output; not computed here

    def __post_init__(self) -> None:
        if self.model_type not in KNOWN:
            raise InputError(f"model_type {self.model_type!r} is not supported; known are {', '.join(FAMILIES)}")
        if self.family.shares_layers:
            object.__setattr__(self, "num_hidden_groups", self.layer_groups)
        if self.family.narrow_embeddings:
            object.__setattr__(self, "embedding_size", self.embedding_width)
        if self.family.word_rank is not None and self.ranks.word_embeddings in (0, self.hidden_size):
            # if the table is as wide as the layers, `transformers` leaves the projection out
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
            if value is not None and not 0 <= value < 1:  # also refuses NaN
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
        """Whether a text may have any number of labels, so that each output is a separate class."""
        return self.problem_type == MULTI_LABEL.problem_type

    @property
    def vector_width(self) -> int:
        """Width of the vector of a text."""
        return self.hidden_size if self.embedding is None else self.embedding.width or self.hidden_size

    @property
    def family(self) -> Family:
        """The row of the table of families."""
        return KNOWN[self.model_type]

    @property
    def max_tokens(self) -> int:
        """The largest number of tokens in a row, by the position embeddings."""
        return self.max_position_embeddings - self.first_position

    @property
    def first_position(self) -> int:
        """The index of the first token's position embedding."""
        return self.pad_token_id + 1 if self.family.positions_after_padding else 0

    @property
    def attention_head_dim(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def layer_groups(self) -> int:
        """The number of groups of layers with separate parameters."""
        return self.num_hidden_layers if self.num_hidden_groups is None else self.num_hidden_groups

    @property
    def embedding_width(self) -> int:
        """Width of the embedding tables."""
        return self.hidden_size if self.embedding_size is None else self.embedding_size

    @property
    def projects_embeddings(self) -> bool:
        """Whether a dense layer projects the embeddings to the width of the layers: in ALBERT always, in ELECTRA if
        the widths differ.
        """
        return self.family.shares_layers or self.embedding_width != self.hidden_size

    @property
    def loads_in_transformers(self) -> bool:
        """Whether a class of `transformers` has this shape. These classes ignore `head_dim`, so heads must have the
        width hidden_size / num_attention_heads, and only MobileBERT has a factorised matrix, the word table. They
        ignore `weight_bits` too, and compute in floats.
        """
        ranks = self.ranks if self.family.word_rank is None else self.ranks._replace(word_embeddings=0)
        return self.all_head_size == self.hidden_size and ranks == FULL_RANK

    @property
    def table_scale(self) -> float:
        """The factor of the embedding tables in files; see `Family.table_scale`."""
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
        """`classifier_dropout`, or `hidden_dropout_prob` if it is None, as in `transformers`."""
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout

    @property
    def all_head_size(self) -> int:
        """Width of all attention heads together."""
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> BertConfig:
        """The config from the content of a Hugging Face `config.json`.

        Raises:
            InputError: something is not supported (another architecture, relative positions, a decoder, ...).
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
        if "classifier_dropout" in family.config_names:  # under the family's name for it, it must be a number
            values["classifier_dropout"] = self.classifier_dropout_rate
        hf = {family.config_names.get(name, name): value for name, value in values.items()}
        if self.score_activation is not None:
            hf["sentence_transformers"] = {"activation_fn": self.score_activation}
        hf |= {name: value for name, (value, _) in family.required.items()}
        if not self.loads_in_transformers:  # else `transformers` would fail on tensor sizes, or ignore `head_dim`
            hf["model_type"] = SLIM + self.model_type
        hf["id2label"] = {str(i): label for i, label in enumerate(self.id2label)}
        hf["label2id"] = {label: i for i, label in enumerate(self.id2label)}
        return hf | {"position_embedding_type": "absolute"}


def _family_of_architectures(hf: Mapping[str, Any]) -> str:
    """The `model_type` for a `config.json` without one, such as those of 2019: by its `architectures`."""
    named = re.findall(r"(\w+?)(?:For|Model)", str(hf.get("architectures")))
    return next((row.model_type for row in FAMILIES.values() if row.architecture in named), "bert")


def _hf_value(name: str, value: Any, annotation: str) -> Any:
    """A value of a `config.json`, checked to have the type of the field's annotation."""
    kind = annotation.removesuffix(" | None")
    # in Python, true is an int; and JSON may write 0.0 as 0
    if isinstance(value, {"int": int, "float": int | float, "str": str}[kind]) and not isinstance(value, bool):
        try:
            return float(value) if kind == "float" else value
        except OverflowError:
            return math.inf  # no field allows it
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
    names = [str(labels[i]) for i in ids]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"id2label has the name {reprlib.repr(twice)} more than once; give each class its own")
    return tuple(names)
