"""Text files of any size -> checked units of text of bounded size."""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from tinybert_jax.data.suspects import holds_json
from tinybert_jax.errors import InputError
from tinybert_jax.models.files.foreign import HEAD, foreign_kind
from tinybert_jax.settings.sources import CorpusSource

UNIT_BYTES = 32 << 20  # at most; 20 GB of text are 600 shards, which are all open at a time
READ_BYTES = 1 << 20


class Text(NamedTuple):
    """The result of a first reading of all files."""

    sha256: str
    size: int  # bytes
    units: int


def survey(source: CorpusSource) -> Text:
    """Read and check all files of a source; see `units`."""
    from tqdm import tqdm

    content, size, count = hashlib.sha256(), 0, 0
    with tqdm(desc="read", unit="B", unit_scale=True, delay=2) as bar:
        for unit in units(source.files, source.one_document_per_line):
            content.update(unit)
            size, count = size + len(unit), count + 1
            bar.update(len(unit))
    return Text(content.hexdigest(), size, count)


def units(
    files: Sequence[str], one_document_per_line: bool, opener: Callable[[str], Any] | None = None
) -> Iterator[bytes]:
    """The concatenated text of the files, in units of at most `UNIT_BYTES`.

    A unit ends at the end of a document. A document that is longer than a unit is cut at a line. Every file ends a
    document.

    Args:
        files: UTF-8 text; a file that ends in .gz is decompressed.
        one_document_per_line: every line is a document. Otherwise documents end at blank lines.
        opener: opens a file that is not local, decompressed.

    Raises:
        InputError: a file is missing, empty, damaged or not UTF-8 (`file:line`), or a line is longer than a unit.
    """
    opener = opener or _open
    buffer = bytearray()
    for path in files:
        for block in _blocks(path, opener):
            buffer += block
            while len(buffer) >= UNIT_BYTES:
                stop = _last_border(buffer[:UNIT_BYTES], one_document_per_line)
                if not stop:
                    raise InputError(f"{path}: a line has more than {UNIT_BYTES:,} bytes: break it between sentences")
                yield from _checked_unit(bytes(buffer[:stop]), files, opener)
                del buffer[:stop]
    yield from _checked_unit(bytes(buffer), files, opener)


def _open(path: str) -> io.BufferedIOBase:
    return gzip.open(path) if path.endswith(".gz") else open(path, "rb")


def _blocks(path: str, opener: Callable[[str], Any]) -> Iterator[bytes]:
    """The bytes of a file without its byte order mark, and a blank line."""
    empty, at_start = True, True
    try:
        with opener(path) as file:
            while data := file.read(READ_BYTES):
                if at_start and (kind := foreign_kind(data[:HEAD])):
                    raise InputError(f"{path}: {kind}")
                if at_start and holds_json(data.lstrip().partition(b"\n")[0].decode("utf-8-sig", "replace")):
                    raise InputError(
                        f"{path}:1: holds JSON, and not text: give the text alone, for example with: jq -r .text"
                    )
                yield data.removeprefix(b"\xef\xbb\xbf") if at_start else data
                at_start, empty = False, empty and not data.strip()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file: name one that exists with --corpus") from None
    except IsADirectoryError:
        raise InputError(f"{path}: a directory: give text files, or one directory of shards alone") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}): copy or compress it anew") from None
    if empty:
        raise InputError(f"{path}:1: the file is empty: give one with text")
    yield b"\n\n"


def _last_border(text: bytearray, one_document_per_line: bool) -> int:
    """The offset after the last complete document; else after the last complete line; else 0."""
    end = len(text)
    while (newline := text.rfind(b"\n", 0, end)) >= 0:
        line = text.rfind(b"\n", 0, newline) + 1
        if one_document_per_line or not text[line:newline].strip():
            return newline + 1
        end = newline
    return text.rfind(b"\n") + 1


def _checked_unit(text: bytes, files: Sequence[str], opener: Callable[[str], Any]) -> Iterator[bytes]:
    """The text as one unit, or nothing if it is blank."""
    try:
        text.decode()
        invalid = b"\0" in text
    except UnicodeDecodeError:
        invalid = True
    if invalid:
        raise _invalid_line(files, opener)
    if text.strip():
        yield text


def _invalid_line(files: Sequence[str], opener: Callable[[str], Any]) -> InputError:
    """The error that names the first line of the files that is invalid."""
    for path in files:
        with opener(path) as file:
            for line, content in enumerate(file, 1):
                if b"\0" in content:
                    return InputError(f"{path}:{line}: a NUL byte: remove it, or save the file as UTF-8")
                try:
                    content.decode()
                except UnicodeDecodeError as error:
                    byte = content[error.start]
                    return InputError(f"{path}:{line}: byte 0x{byte:02x} is not UTF-8: save the file as UTF-8")
    return InputError(f"{', '.join(files)}: changed while they were read: run again")
