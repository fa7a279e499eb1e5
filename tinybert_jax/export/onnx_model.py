"""A BERT as an ONNX model of standard operators, with any number of rows and tokens, for every family and head."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import onnx

from tinybert_jax.batch import Params
from tinybert_jax.errors import InputError
from tinybert_jax.export.graph import Graph
from tinybert_jax.inference.exported import VECTORS
from tinybert_jax.models import relative
from tinybert_jax.models.config import EMBEDDING_DENSE, BertConfig
from tinybert_jax.models.files.tensors import head_of
from tinybert_jax.models.parameters import ranks_used, rows_read
from tinybert_jax.models.quantized import to_int8

MASKED = -1e9  # added to the scores of padding, as in `layers`
LARGEST = 2**31 - 2**24  # bytes of constants, because a file of protocol buffers has at most 2 GB


def onnx_model(config: BertConfig, params: Params, weight_bits: int | None = None) -> onnx.ModelProto:
    """The ONNX model of an encoder with its head.

    Inputs are `input_ids`, `attention_mask` and, if the family has them, `token_type_ids`, int64 [batch, sequence].
    Outputs have the names of optimum: `logits`; `start_logits` and `end_logits`; for embedding models
    `last_hidden_state` and `sentence_embedding`; without a head `last_hidden_state` and, with a pooler,
    `pooler_output`.

    Args:
        config: the model's config.
        params: the model's parameters as `load_hf` returns them.
        weight_bits: None: everything is float32. 8: dense layers and the word table are int8, and the inputs of dense
            layers are quantised at run time. 7: the same with half of the range, for processors without VNNI, on which
            the sum of two 8-bit products overflows.

    Raises:
        InputError: the model has more than 2 GB, or a head that cannot be exported.
    """
    params = jax.tree.map(np.asarray, jax.device_get(params))
    fewer = weight_bits if weight_bits is None or config.weight_bits is None else min(weight_bits, config.weight_bits)
    graph, head = Graph(fewer, weight_bits), head_of(params, config)
    if head not in WRITERS:
        raise InputError(f"head {head!r} has no row in the table of ONNX writers; known are {', '.join(WRITERS)}")
    outputs = WRITERS[head](_Model(graph, config, params))
    if graph.bytes > LARGEST:
        raise InputError(f"the model has {graph.bytes / 1e9:.1f} GB, and an ONNX file at most 2: take onnx-int8")
    inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if config.type_vocab_size else [])]
    return graph.model(inputs, outputs, ["batch", "sequence"])


class _Model:
    """The parts of a BERT. Each adds its nodes to the graph."""

    def __init__(self, graph: Graph, config: BertConfig, params: Params) -> None:
        self.graph, self.config, self.params = graph, config, params

    def encoder(self, first_alone: bool = False) -> str:
        """The last hidden states [batch, sequence, d]; with `first_alone`, only the first token's [batch, 1, d]. Then
        the last layer computes only keys and values for all tokens, and everything else for the first.
        """
        graph, layers = self.graph, self.params["encoder"]["encoder"]["layer"]
        mask = graph.add("Cast", "attention_mask", to=onnx.TensorProto.FLOAT)
        missing = graph.add("Sub", graph.constant("one", 1.0), mask)
        mask = graph.add("Mul", missing, graph.constant("masked", MASKED))
        mask = graph.add("Unsqueeze", mask, graph.constant("head_axes", [1, 2], np.int64))
        if self.config.family.position_buckets:
            mask = graph.add("Add", mask, self.position_bias())
        x = self.embeddings()
        repeats = self.config.num_hidden_layers // self.config.layer_groups
        for i in range(self.config.num_hidden_layers):
            group = i // repeats  # constants of one name are stored once
            params = jax.tree.map(lambda leaf, g=group: leaf[g], layers)
            tokens = x
            if first_alone and i == self.config.num_hidden_layers - 1:
                tokens = self.first(x, axis=1)
                mask = self.first(mask, axis=2)
            x = self.layer(tokens, x, mask, params, f"layer.{group}")
        return x

    def first(self, x: str, axis: int) -> str:
        """The first entry of x on an axis. The axis is kept."""
        start, end, of_axis = (self.graph.constant(f"index_{i}", [i], np.int64) for i in (0, 1, axis))
        return self.graph.add("Slice", x, start, end, of_axis)

    def embeddings(self) -> str:
        """The sum of the embeddings of words, positions and token types, normalised."""
        graph, config = self.graph, self.config
        tables = self.params["encoder"]["embeddings"]
        x = graph.add("Add", self.words(), self.positions(tables["position_embeddings"]["embedding"]))
        if config.type_vocab_size:
            types = graph.constant("token_type_embeddings", tables["token_type_embeddings"]["embedding"])
            x = graph.add("Add", x, graph.add("Gather", types, "token_type_ids"))
        x = self.layer_norm(x, tables["LayerNorm"], "embeddings.LayerNorm", config.embeddings_eps)
        if not config.projects_embeddings:
            return x
        mapping = tables["embedding_hidden_mapping_in"]
        return graph.float_dense(x, mapping["kernel"], mapping["bias"], "embedding_hidden_mapping_in")

    def words(self) -> str:
        """The embeddings of the words; in int8 the table has a scale for each row."""
        rows = self.word_rows()
        projection = self.params["encoder"]["embeddings"].get("word_embeddings_projection")
        if projection is None:
            return rows
        return self.graph.float_dense(rows, projection["kernel"], projection["bias"], "word_embeddings_projection")

    def word_rows(self) -> str:
        """The rows of the word table, before a projection."""
        graph, table = self.graph, self.word_table()
        if graph.table_bits is None:
            return graph.add("Gather", graph.constant("word_embeddings", table), "input_ids")
        quantised, scales = to_int8(table, graph.table_bits, axis=1)
        rows = graph.add("Gather", graph.constant("word_embeddings_quantized", quantised, np.int8), "input_ids")
        scale = graph.add("Gather", graph.constant("word_embeddings_scale", scales), "input_ids")
        return graph.add("Mul", graph.add("Cast", rows, to=onnx.TensorProto.FLOAT), scale)

    def word_table(self) -> np.ndarray:
        """The word table without padding rows."""
        table = self.params["encoder"]["embeddings"]["word_embeddings"]["embedding"]
        return np.asarray(table[: self.config.vocab_size])

    def positions(self, table: np.ndarray) -> str:
        """The embeddings of the positions, as `layers.position_ids` counts them."""
        graph, config = self.graph, self.config
        if config.family.positions_after_padding:
            padding = graph.constant("padding", config.pad_token_id, np.int64)
            real = graph.add("Not", graph.add("Equal", "input_ids", padding))
            real = graph.add("Cast", real, to=onnx.TensorProto.INT64)
            counted = graph.add("Mul", graph.add("CumSum", real, graph.constant("axis_1", 1, np.int64)), real)
            ids = graph.add("Add", counted, padding)
            return graph.add("Gather", graph.constant("position_embeddings", table), ids)
        shape = graph.add("Shape", "input_ids", start=1, end=2)
        starts, axes = (graph.constant("start", [0], np.int64), graph.constant("axes", [0], np.int64))
        return graph.add("Slice", graph.constant("position_embeddings", table), starts, shape, axes)

    def position_bias(self) -> str:
        """The relative position bias [h, q, k], from the biases of all possible distances."""
        graph, longest = self.graph, self.config.max_tokens
        distances = np.arange(1 - longest, longest)
        table = relative.bias_table(self.config, self.params["encoder"])
        table = graph.constant(relative.TABLE, table[relative.buckets(distances, len(table))])
        first, one = graph.constant("first", 0, np.int64), graph.constant("position_step", 1, np.int64)
        length = graph.add("Squeeze", graph.add("Shape", "input_ids", start=1, end=2))
        keys = graph.add("Range", first, length, one)
        queries = graph.add("Unsqueeze", keys, graph.constant("key_axis", [1], np.int64))
        rows = graph.add("Add", graph.add("Sub", keys, queries), graph.constant("farthest", longest - 1, np.int64))
        return graph.add("Transpose", graph.add("Gather", table, rows), perm=[2, 0, 1])

    def layer(self, x: str, context: str, mask: str, params: Params, name: str) -> str:
        """One layer for the tokens x, which attend to `context`. Pruned heads and units, which the output projections
        do not read, are left out.
        """
        attention = params["attention"]
        read = rows_read(attention["output"]["dense"])
        # a head is kept or left out as a whole; with a relative position bias, all are kept
        read = read.reshape(-1, self.config.attention_head_dim).any(axis=1).repeat(self.config.attention_head_dim)
        read |= bool(self.config.family.position_buckets)
        projections = {part: _columns(dense, read) for part, dense in attention["self"].items()}
        attended = self.attention(x, context, mask, projections, f"{name}.attention.self") if read.any() else None
        eps = self.config.layer_norm_eps
        x = self.residual(attended, x, _without_rows(attention["output"], read), f"{name}.attention.output", eps)
        eps = self.config.feed_forward_eps
        output = params["output"]
        units = rows_read(output["dense"])
        if not units.any():
            return self.residual(None, x, output, f"{name}.output", eps)
        widening = _columns(params["intermediate"]["dense"], units)
        inner = self.activation(self.dense(x, widening, f"{name}.intermediate.dense"), self.config.hidden_act)
        return self.residual(inner, x, _without_rows(output, units), f"{name}.output", eps)

    def attention(self, x: str, context: str, mask: str, params: Params, name: str) -> str:
        """Multi-head attention of x to `context`. The division of the scores is folded into the queries' weights."""
        graph, width = self.graph, self.config.attention_head_dim
        heads = _last(params["query"])["kernel"].shape[1] // width
        split = graph.constant(f"split_{heads}", [0, 0, heads, width], np.int64)

        def project(part: str, states: str, order: list[int], scale: float = 1.0) -> str:
            dense = _with_last(params[part], lambda leaf: np.asarray(leaf * np.float32(scale)))
            return graph.add(
                "Transpose", graph.add("Reshape", self.dense(states, dense, f"{name}.{part}"), split), perm=order
            )

        query = project("query", x, [0, 2, 1, 3], 1 / math.sqrt(width))
        key, value = project("key", context, [0, 2, 3, 1]), project("value", context, [0, 2, 1, 3])
        weights = graph.add("Softmax", graph.add("Add", graph.add("MatMul", query, key), mask), axis=-1)
        attended = graph.add("Transpose", graph.add("MatMul", weights, value), perm=[0, 2, 1, 3])
        return graph.add("Reshape", attended, graph.constant(f"join_{heads}", [0, 0, heads * width], np.int64))

    def residual(self, x: str | None, residual: str, params: Params, name: str, eps: float) -> str:
        """`LayerNorm(dense(x) + residual)`; if x is None, the dense layer gives only its bias."""
        if x is None:
            added = self.graph.constant(f"{name}.bias", _last(params["dense"])["bias"])
        else:
            added = self.dense(x, params["dense"], f"{name}.dense")
        total = self.graph.add("Add", added, residual)
        return self.layer_norm(total, params["LayerNorm"], f"{name}.LayerNorm", eps)

    def pooled(self, states: str, output: str | None = None) -> str:
        """The first token's state after the pooler, or after the family's layer in its place."""
        first = self.graph.add("Gather", states, self.graph.constant("first", 0, np.int64), axis=1)
        pooled = self.dense(first, self.params["encoder"]["pooler"]["dense"], "pooler.dense")
        return self.activation(pooled, self.config.family.pooler_activation, output)

    def dense(self, x: str, params: Params, name: str) -> str:
        """A dense layer. Low-rank factors are multiplied if their product does not cost more."""
        if "up" not in params:
            return self.graph.dense(x, params["kernel"], params["bias"], name)
        used, up = ranks_used(params), params["up"]
        down, outer = params["down"]["kernel"][:, used], up["kernel"][used]
        if down.size + outer.size >= down.shape[0] * outer.shape[1]:
            return self.graph.dense(x, down @ outer, up["bias"], name)
        narrow = self.graph.dense(x, down, None, f"{name}.down")
        return self.graph.dense(narrow, outer, up["bias"], f"{name}.up")

    def layer_norm(self, x: str, params: Params, name: str, eps: float) -> str:
        return self.graph.layer_norm(x, params["scale"], params["bias"], eps, name)

    def activation(self, x: str, name: str, output: str | None = None) -> str:
        """An activation, by its name in `models.layers.ACTIVATIONS`."""
        return ACTIVATIONS[name](self.graph, x, output)


Shapes = dict[str, list[str | int]]
ROWS: list[str | int] = ["batch"]
TOKENS: list[str | int] = ["batch", "sequence"]


def _bare(model: _Model) -> Shapes:
    """The hidden states, and the pooler's output if there is one."""
    states = model.encoder()
    model.graph.add("Identity", states, name="last_hidden_state")
    shapes = {"last_hidden_state": [*TOKENS, model.config.hidden_size]}
    if "pooler" in model.params["encoder"]:
        model.pooled(states, "pooler_output")
        shapes["pooler_output"] = [*ROWS, model.config.hidden_size]
    return shapes


def _sequence(model: _Model) -> Shapes:
    """The classifier over the pooled first token."""
    dense, x = model.params["classifier"], model.pooled(model.encoder(first_alone=True))
    model.graph.float_dense(x, dense["kernel"], dense["bias"], "classifier", "logits")
    return {"logits": [*ROWS, model.config.num_labels]}


def _tokens(model: _Model) -> Shapes:
    """The classifier over every token."""
    dense, x = model.params["classifier"], model.encoder()
    model.graph.float_dense(x, dense["kernel"], dense["bias"], "classifier", "logits")
    return {"logits": [*TOKENS, model.config.num_labels]}


def _span(model: _Model) -> Shapes:
    """The logits of an answer's first and last token."""
    graph, dense = model.graph, model.params["qa_outputs"]
    both = graph.float_dense(model.encoder(), dense["kernel"], dense["bias"], "qa_outputs", "both")
    halves, last = graph.add("Split", both, axis=-1, outputs=2), graph.constant("last_axis", [-1], np.int64)
    for name, half in zip(("start_logits", "end_logits"), halves, strict=True):
        graph.add("Squeeze", half, last, name=name)
    return {"start_logits": TOKENS, "end_logits": TOKENS}


def _embedding(model: _Model) -> Shapes:
    """The hidden states, which sentence-transformers pools itself, and the vector of each text."""
    graph, config = model.graph, model.config
    how = config.embedding
    assert how is not None, "the head is there if the config says how"
    states = model.encoder()
    graph.add("Identity", states, name="last_hidden_state")
    mask = graph.add("Cast", "attention_mask", to=onnx.TensorProto.FLOAT)
    mask = graph.add("Unsqueeze", mask, graph.constant("state_axis", [2], np.int64))
    x = POOLINGS[how.pooling](graph, states, mask)
    if how.width is not None:
        dense = model.params[EMBEDDING_DENSE]
        x = graph.add(how.activation, graph.float_dense(x, dense["kernel"], dense["bias"], EMBEDDING_DENSE))
    if how.normalize:
        norm = graph.add("ReduceL2", x, axes=[-1], keepdims=1)
        x = graph.add("Div", x, graph.add("Max", norm, graph.constant("least_norm", 1e-12)))
    graph.add("Identity", x, name=VECTORS)
    return {"last_hidden_state": [*TOKENS, config.hidden_size], VECTORS: [*ROWS, config.vector_width]}


def _mean(graph: Graph, states: str, mask: str) -> str:
    axis = graph.constant("token_axis", [1], np.int64)
    count = graph.add("Max", graph.add("ReduceSum", mask, axis, keepdims=0), graph.constant("one", 1.0))
    return graph.add("Div", graph.add("ReduceSum", graph.add("Mul", states, mask), axis, keepdims=0), count)


def _max(graph: Graph, states: str, mask: str) -> str:
    real = graph.add("Cast", mask, to=onnx.TensorProto.BOOL)
    masked = graph.add("Where", real, states, graph.constant("masked", MASKED))
    return graph.add("ReduceMax", masked, axes=[1], keepdims=0)


# pooling -> function of states [b, q, d] and a mask [b, q, 1], as `heads.POOLED`
POOLINGS: dict[str, Callable[[Graph, str, str], str]] = {
    "cls": lambda graph, states, mask: graph.add("Gather", states, graph.constant("first", 0, np.int64), axis=1),
    "mean": _mean,
    "max": _max,
}


def _masked_lm(model: _Model) -> Shapes:
    """The masked-LM head. Its decoder shares the word table."""
    graph, config, predictions = model.graph, model.config, model.params["cls"]["predictions"]
    x = model.dense(model.encoder(), predictions["transform"]["dense"], "transform.dense")
    x = model.activation(x, config.family.lm_activation or config.hidden_act)
    x = model.layer_norm(x, predictions["transform"]["LayerNorm"], "transform.LayerNorm", config.layer_norm_eps)
    if config.ranks.word_embeddings:
        x = graph.add("MatMul", x, graph.add("Transpose", "word_embeddings_projection.weight", perm=[1, 0]))
    if graph.weight_bits is None:
        logits = graph.add("MatMul", x, graph.add("Transpose", "word_embeddings", perm=[1, 0]))
    else:
        scales = graph.add("Squeeze", "word_embeddings_scale", graph.constant("last_axis", [-1], np.int64))
        logits = graph.int8_product(x, graph.add("Transpose", "word_embeddings_quantized", perm=[1, 0]), scales)
    bias = graph.constant("decoder.bias", predictions["bias"][: config.vocab_size])
    graph.add("Add", logits, bias, name="logits")
    return {"logits": [*TOKENS, config.vocab_size]}


# row of `models.heads.HEADS` -> function that adds all nodes of a model, and returns its outputs with their shapes
WRITERS: dict[str, Callable[[_Model], Shapes]] = {
    "encoder": _bare,
    "sequence": _sequence,
    "tokens": _tokens,
    "span": _span,
    "masked_lm": _masked_lm,
    "embedding": _embedding,
}


def _last(dense: Params) -> Params:
    """The parameters that give a dense layer's outputs: with low-rank factors, the second one."""
    return dense.get("up", dense)


def _with_last(dense: Params, change: Callable[[np.ndarray], np.ndarray]) -> Params:
    """The dense layer with a change to the kernel and bias that give its outputs."""
    changed = {key: change(leaf) for key, leaf in _last(dense).items()}
    return dense | {"up": changed} if "up" in dense else changed


def _columns(dense: Params, read: np.ndarray) -> Params:
    """The dense layer with only the outputs that are read."""
    return _with_last(dense, lambda leaf: np.asarray(leaf[..., read]))


def _without_rows(output: Params, read: np.ndarray) -> Params:
    """The parameters of an output projection, with only the inputs that it reads."""
    dense = output["dense"]
    if "down" in dense:
        return output | {"dense": dense | {"down": {"kernel": dense["down"]["kernel"][read]}}}
    return output | {"dense": dense | {"kernel": dense["kernel"][read]}}


def _gelu(graph: Graph, x: str, output: str | None) -> str:
    half, one = graph.constant("half", 0.5), graph.constant("one", 1.0)
    erf = graph.add("Erf", graph.add("Div", x, graph.constant("root_2", math.sqrt(2.0))))
    return graph.add("Mul", graph.add("Mul", x, graph.add("Add", erf, one)), half, name=output)


def _tanh_gelu(graph: Graph, x: str, output: str | None) -> str:
    half, one = graph.constant("half", 0.5), graph.constant("one", 1.0)
    cube = graph.add("Mul", graph.add("Mul", graph.add("Mul", x, x), x), graph.constant("cubic", 0.044715))
    inner = graph.add("Mul", graph.add("Add", x, cube), graph.constant("root_2_pi", math.sqrt(2 / math.pi)))
    return graph.add("Mul", graph.add("Mul", x, graph.add("Add", graph.add("Tanh", inner), one)), half, name=output)


ACTIVATIONS: dict[str, Callable[[Graph, str, Any], str]] = {
    "gelu": _gelu,
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "relu": lambda graph, x, output: graph.add("Relu", x, name=output),
    "tanh": lambda graph, x, output: graph.add("Tanh", x, name=output),
}
