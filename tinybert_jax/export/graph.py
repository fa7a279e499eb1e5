"""A builder of ONNX graphs: nodes, constants, and dense layers in float32 or int8."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tinybert_jax.models.quantized import to_int8

OPSET = 17  # the first with LayerNormalization


class Graph:
    """Collects the nodes and constants of an ONNX model, in the order in which they are computed.

    Args:
        weight_bits: None: dense layers are float32. Else their weights are int8, symmetric, with one scale for each
            output, and their inputs are quantised at run time; 7 bits use half of the range.
        table_bits: the same for the word table, with one scale for each row.
    """

    def __init__(self, weight_bits: int | None = None, table_bits: int | None = None) -> None:
        self.weight_bits, self.table_bits = weight_bits, table_bits
        self.bytes = 0  # of all constants
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._names: dict[tuple[Any, ...], str] = {}  # names of constants by their content
        self._quantised_inputs: dict[str, tuple[str, str, str]] = {}
        self._count = 0

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        """Add a constant and return its name. Equal constants are stored once, under one name."""
        array = np.asarray(value, dtype, order="C")  # np.ascontiguousarray would give a number an axis
        key = array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).digest()
        if key not in self._names:
            self._names[key] = name
            self._constants[name] = numpy_helper.from_array(array, name)
            self.bytes += array.nbytes
        return self._names[key]

    def add(self, op: str, *inputs: str, outputs: int = 1, name: str | None = None, **attributes: Any) -> Any:
        """Add a node with a standard operator and return the name of its output, or a list of names."""
        self._count += 1
        names = [name] if name else [f"{op}_{self._count}{f'_{i}' if outputs > 1 else ''}" for i in range(outputs)]
        self._nodes.append(helper.make_node(op, inputs, names, f"{op}_{self._count}", **attributes))
        return names if outputs > 1 else names[0]

    def dense(self, x: str, kernel: np.ndarray, bias: np.ndarray | None, name: str) -> str:
        """`x @ kernel + bias`, in int8 if the graph has `weight_bits`. The bias is optional."""
        if self.weight_bits is None:
            return self.float_dense(x, kernel, bias, name)
        quantised, scales = to_int8(kernel, self.weight_bits, axis=0)
        weight = self.constant(f"{name}.weight_quantized", quantised, np.int8)
        product = self.int8_product(x, weight, self.constant(f"{name}.weight_scale", scales[0]))
        return product if bias is None else self.add("Add", product, self.constant(f"{name}.bias", bias))

    def float_dense(
        self, x: str, kernel: np.ndarray, bias: np.ndarray | None, name: str, output: str | None = None
    ) -> str:
        """`x @ kernel + bias`, always in float32, for the small layer of a head."""
        product = self.add("MatMul", x, self.constant(f"{name}.weight", kernel))
        if bias is None:
            return product
        return self.add("Add", product, self.constant(f"{name}.bias", bias), name=output)

    def int8_product(self, x: str, weight: str, scales: str) -> str:
        """The product of x and int8 weights [i, o] with scales [o]. x is quantised to 8 bits with a single scale.

        For several products of the same x, it is quantised once.
        """
        if x not in self._quantised_inputs:
            self._quantised_inputs[x] = tuple(self.add("DynamicQuantizeLinear", x, outputs=3))
        quantised, scale, zero = self._quantised_inputs[x]
        product = self.add("MatMulInteger", quantised, weight, zero)
        # this order lets ONNX Runtime fuse these four
        return self.add("Mul", self.add("Cast", product, to=TensorProto.FLOAT), self.add("Mul", scale, scales))

    def layer_norm(self, x: str, scale: np.ndarray, bias: np.ndarray, epsilon: float, name: str) -> str:
        """LayerNorm over the last axis."""
        names = self.constant(f"{name}.weight", scale), self.constant(f"{name}.bias", bias)
        return self.add("LayerNormalization", x, *names, axis=-1, epsilon=epsilon)

    def model(self, inputs: list[str], outputs: dict[str, list[str | int]], axes: list[str]) -> onnx.ModelProto:
        """The finished model, with int64 inputs and float32 outputs with these axes."""
        graph = helper.make_graph(
            self._nodes,
            "model",
            [helper.make_tensor_value_info(name, TensorProto.INT64, axes) for name in inputs],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
            list(self._constants.values()),
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="tinybert_jax")
        model.ir_version = 8  # that of OPSET, so that runtimes of that age can read the file
        return model
