"""The laws of `fuzz_test.py` share how long they are tried, and the files that are nearly right."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

from tinybert_jax.errors import InputError

T = TypeVar("T")
_NOTES = tempfile.TemporaryDirectory(prefix="tinybert-jax-hypothesis-")  # else it keeps them where pytest is started
set_hypothesis_home_dir(_NOTES.name)


def law(examples: int) -> settings:
    """The same examples in every run; in a long one, of what is slow at most 20 times as many."""
    return settings(
        max_examples=min(int(os.environ.get("FUZZ_EXAMPLES", examples)), 20 * examples),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def put(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read_or_refused(read: Callable[[], T], path: Path) -> T | None:
    """What is read; None where it is refused, in one line that begins with the path.

    `pytest --hypothesis-show-statistics` tells how often either happens.
    """
    try:
        content = read()
    except InputError as error:
        line = str(error)
        assert line.startswith(f"{path}"), line
        assert len(line.splitlines()) == 1, line
        assert len(line) > len(str(path)) + 20, line
        event("refused")
        return None
    event("read")
    return content


HOSTILE = [
    *(b"", b"\0", b"\r", b"\n", b"\r\n", b"\t", b'"', b",", b"_", b" ", b"\xff", b"\xef\xbb\xbf", b"\xe2\x80\xa8"),
    *(b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"NaN", b"-Infinity", b"1e999", b"-1", b"0", b"1.5", b"true", b"null"),
    *(b"{}", b"[]", b"[" * 3000, b"9" * 5000, b"a" * 200_000, b'"text": "b", ', b"2 99999999999999999999\n"),
]


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """A few pieces of the content, each replaced by something else; at times the end is missing."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(data)))
        size = draw(st.sampled_from([0, 1, 2, 8, 64, len(data)]))
        data[begin : begin + size] = draw(st.sampled_from(HOSTILE) | st.binary(max_size=8))
    return bytes(data)


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 12),
    st.sampled_from([2**31 - 1, 2**31, 2**63, 10**12, 10**400, -(10**30)]),
    st.floats(),
    st.sampled_from(["24", "gelu", "a\nb", "\ud800", "\0", "[CLS]", "[PAD]"]),
    st.text(max_size=8),
)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


def edited(content: dict[str, Any], *more_keys: str) -> st.SearchStrategy[dict[str, Any]]:
    """The object with some of its values, or others, replaced by anything."""
    keys = st.sampled_from([*content, *more_keys])
    return st.dictionaries(keys, json_values, min_size=1, max_size=3).map(lambda changes: content | changes)
