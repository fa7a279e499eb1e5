"""Read the tensors of a file of `torch.save`, without torch and without running code from the file.

A pickle that may name any function can run any code, so only three names are allowed (`_Unpickler.find_class`). The
numbers are not pickled: they are raw bytes in storages, and tensors are views of storages. There are two formats: a
zip file, and the format before torch 1.6.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from tinybert_jax.errors import InputError, first_line

ZIP = b"PK\x03\x04"  # the first bytes of a zip file
MOST_NUMBERS = 2**31  # largest size of a tensor: an expanded one may have more numbers than its storage
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
DTYPES: dict[str, Any] = {
    "Double": np.float64,
    "Float": np.float32,
    "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
    "ComplexDouble": np.complex128,
    "ComplexFloat": np.complex64,
}
STATE_DICT = "torch.save(model.state_dict(), 'pytorch_model.bin')"


class _Storage(NamedTuple):
    key: str
    dtype: str
    size: int


class _Tensor(NamedTuple):
    """A view of a storage, as the pickle describes it. Nothing in it is checked yet."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a `pytorch_model.bin` by name. No code in it runs.

    Raises:
        InputError: the file is damaged, holds more than tensors (such as a whole model), or is not one dict of them.
    """
    try:
        with path.open("rb") as file:
            begin = file.read(len(ZIP))
            if begin == ZIP:
                return _read_zip(path)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _read_legacy(content, path)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle raises anything
        raise InputError(f"{path}: damaged or truncated ({first_line(error)}); fetch the file again") from None


class _Unpickler(pickle._Unpickler):
    """The unpickler in Python, not in C: in that, a number in the file can allocate any amount of memory."""

    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(file)
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        """The object for one of the three names that a file of tensors needs.

        Raises:
            InputError: any other name.
        """
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: _Tensor(storage, offset, shape, strides)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        kind = re.fullmatch("([A-Za-z0-9]+)Storage", name)
        if module in ("torch", "torch.cuda") and kind and kind[1] in DTYPES:
            return kind[1]
        raise InputError(
            f"{self.path}: names {module:.80}.{name:.80}, so it holds more than tensors (a whole model?), and reading"
            f" it could run code: open it where you trust it, and save the weights alone: {STATE_DICT}"
        )

    def persistent_load(self, description: Any) -> _Storage:
        """A storage. The pickle holds only its key, dtype and size."""
        kind, dtype, key, _, size, *view = description
        if kind != "storage" or not isinstance(dtype, str) or not isinstance(key, str) or view not in ([], [None]):
            raise ValueError(f"no storage: {description!r:.80}")
        return _Storage(key, dtype, size)


def _read_zip(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        folder = next((name.removesuffix("data.pkl") for name in names if re.fullmatch("[^/]*/data.pkl", name)), "")
        byteorder = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in names else b"little"
        described = _Unpickler(io.BytesIO(archive.read(f"{folder}data.pkl")), path).load()

        def storage(key: str, size: int) -> bytes:
            entry = archive.getinfo(f"{folder}data/{key}")
            if entry.file_size < size:  # check before reading
                raise ValueError(f"{entry.filename} has {entry.file_size} bytes of {size}")
            return archive.read(entry)

        return _tensors(described, storage, ">" if byteorder == b"big" else "<", path)


def _read_legacy(content: mmap.mmap, path: Path) -> dict[str, np.ndarray]:
    """Read the old format: pickles of a magic number, version, system, object and storage keys; then the storages."""
    try:
        magic = _Unpickler(content, path).load()
    except InputError:
        raise
    except Exception:
        magic = None
    if magic != LEGACY_MAGIC:
        raise InputError(f"{path}: no file of torch.save in a form that is read: save it anew: {STATE_DICT}")
    _version, system, described, keys = (_Unpickler(content, path).load() for _ in range(4))
    order = "<" if system["little_endian"] else ">"
    sizes = {tensor.storage.key: tensor.storage for tensor in _named(described, path).values()}
    places: dict[str, int] = {}
    for key in keys:
        count = int.from_bytes(content.read(8), "little" if order == "<" else "big")
        places[key] = content.tell()
        if key not in sizes:
            raise ValueError(f"the kind of the storage {key} is not known")
        content.seek(count * np.dtype(DTYPES[sizes[key].dtype]).itemsize, io.SEEK_CUR)
    return _tensors(described, lambda key, size: content[places[key] : places[key] + size], order, path)


def _named(described: Any, path: Path) -> dict[str, _Tensor]:
    """The unpickled object, if it is a dict of tensors.

    Raises:
        InputError: it is not.
    """
    if isinstance(described, dict) and all(
        isinstance(name, str) and isinstance(tensor, _Tensor) for name, tensor in described.items()
    ):
        return described
    parts = described if isinstance(described, dict) else {}
    inside = next((name for name, part in parts.items() if isinstance(part, dict) and part), None)
    weights = "model.state_dict()" if inside is None else f"checkpoint[{inside!r:.80}]"
    raise InputError(f"{path}: holds more than named tensors: save them alone: torch.save({weights}, '{path.name}')")


def _tensors(described: Any, storage: Callable[[str, int], bytes], order: str, path: Path) -> dict[str, np.ndarray]:
    """The tensors, copied out of their storages. Each storage is read once, even if several tensors share it."""
    loaded: dict[tuple[str, str], np.ndarray] = {}
    tensors: dict[str, np.ndarray] = {}
    for name, tensor in _named(described, path).items():
        key, kind, size = tensor.storage
        dtype = np.dtype(DTYPES[kind])
        if (key, kind) not in loaded:
            content = storage(key, size * dtype.itemsize)
            flat = np.frombuffer(content, dtype.newbyteorder(order), size)
            loaded[key, kind] = flat.astype(dtype, copy=False)
        tensors[name] = _view(loaded[key, kind], tensor, name)
    return tensors


def _view(flat: np.ndarray, tensor: _Tensor, name: str) -> np.ndarray:
    shape, strides = tensor.shape, tensor.strides
    numbers = [tensor.offset, *shape, *strides]
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    fits = all(isinstance(number, int) and number >= 0 for number in numbers) and math.prod(shape) <= MOST_NUMBERS
    if not fits or (math.prod(shape) and last >= len(flat)):
        raise ValueError(f"{name!r:.80} does not fit into its storage")
    steps = [stride * flat.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(flat[tensor.offset :], shape, steps, writeable=False)
