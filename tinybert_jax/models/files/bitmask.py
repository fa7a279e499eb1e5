"""Storage of matrices without their zeros: one bit for each weight, and the values that are not zero.

In a packed file, a matrix NAME is stored as NAME.bitmask (uint8, eight weights a byte, the first in the highest bit),
NAME.values (float32) and NAME.shape (int32 [2]), row by row. Other tensors are stored as usual.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tinybert_jax.errors import InputError

PACKED_FILE = "model.bitmask.safetensors"
PARTS = ("bitmask", "values", "shape")  # the last parts of tensor names
LEAST_ZEROS = 0.3  # a matrix is packed from this share of zeros on; below 1/32, packing would make it larger


def pack(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors with float32 matrices packed that have many zeros. `unpack` restores the same bits.

    >>> packed = pack({"weight": np.array([[0.0, 2.0, 0.0], [0.0, 0.0, 3.0]], np.float32)})
    >>> {name: part.tolist() for name, part in packed.items()}
    {'weight.bitmask': [68], 'weight.values': [2.0, 3.0], 'weight.shape': [2, 3]}
    """
    packed: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        if tensor.ndim != 2 or tensor.dtype != np.float32 or (tensor == 0).mean() < LEAST_ZEROS:
            packed[name] = tensor
            continue
        kept = np.ascontiguousarray(tensor).view(np.uint32) != 0  # -0.0 is kept as a value
        packed[f"{name}.bitmask"] = np.packbits(kept)
        packed[f"{name}.values"] = tensor[kept]
        packed[f"{name}.shape"] = np.array(tensor.shape, np.int32)
    return packed


def unpack(tensors: Mapping[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """The inverse of `pack`.

    Raises:
        InputError: the parts of a matrix do not fit together.
    """
    unpacked = dict(tensors)
    split = [name.rpartition(".") for name in tensors]
    for name in dict.fromkeys(name for name, _, part in split if part in PARTS):
        parts = [unpacked.pop(f"{name}.{part}", None) for part in PARTS]
        if name in unpacked:
            raise InputError(f"{path}: holds {name!r} twice, packed and as it is: keep one of the two")
        matrix = _matrix(*parts)
        if matrix is None:
            raise InputError(f"{path}: the parts of {name!r} do not fit together: fetch or write the file again")
        unpacked[name] = matrix
    return unpacked


def _matrix(bitmask: np.ndarray | None, values: np.ndarray | None, shape: np.ndarray | None) -> np.ndarray | None:
    """The matrix of these parts; None if they do not fit together."""
    if bitmask is None or values is None or shape is None:
        return None
    kinds = [(part.dtype.name, part.ndim) for part in (bitmask, values, shape)]
    if kinds != [("uint8", 1), ("float32", 1), ("int32", 1)] or len(shape) != 2 or (shape < 0).any():
        return None
    size = math.prod(shape.tolist())
    kept = np.unpackbits(bitmask).astype(bool)
    if len(bitmask) != -(-size // 8) or kept[size:].any() or kept.sum() != len(values):
        return None
    matrix = np.zeros(size, np.float32)
    matrix[kept[:size]] = values
    return matrix.reshape(shape)
