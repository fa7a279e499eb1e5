"""Read a `flax_model.msgpack`, which Flax models of `transformers` 4 save -> tensors under torch's names."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tinybert_jax.errors import InputError, first_line


def read_flax(path: Path) -> dict[str, np.ndarray]:
    """The tensors of the file, under torch's names and in its orientation.

    Raises:
        InputError: the file is damaged, or holds something other than tensors.
    """
    from flax import serialization, traverse_util  # here, because it imports jax, which tokenising workers do not need

    try:
        flat = traverse_util.flatten_dict(serialization.msgpack_restore(path.read_bytes()))
        names = {name: ".".join(name) for name in flat}
    except Exception as error:  # errors of msgpack, numpy and flax
        raise InputError(f"{path}: damaged or truncated ({first_line(error)}); fetch the file again") from None
    tensors = {}
    for name, value in flat.items():
        if not isinstance(value, np.ndarray):
            raise InputError(f"{path}: {names[name]!r} is no tensor: save the model by its save_pretrained()")
        *begin, last = name
        if last in ("kernel", "embedding", "scale"):
            tensors[".".join([*begin, "weight"])] = value.T if last == "kernel" else value
        else:
            tensors[names[name]] = value
    return tensors
