"""Recognise, by its first bytes, a file whose content is not what its name says."""

from __future__ import annotations

import re

HEAD = 4096  # number of first bytes to look at
LFS_POINTER = b"version https://git-lfs"
BEGINNINGS = {
    LFS_POINTER: "a pointer of Git LFS, not the file: fetch it with `git lfs pull`",
    b"\x1f\x8b": "compressed by gzip: unpack it with gunzip",
    b"BZh": "compressed by bzip2: unpack it with bunzip2",
    b"\xfd7zXZ": "compressed by xz: unpack it with unxz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it with unzstd",
    b"PK\3\4": "a zip archive or an Excel workbook: unpack it, or save its sheet as CSV in UTF-8",
    b"\xd0\xcf\x11\xe0": "an Excel workbook: save its sheet as CSV in UTF-8",
    b"PAR1": "a Parquet file: write it as JSON lines, as pandas does by to_json(FILE, orient='records', lines=True)",
    b"ARROW1": "an Arrow file: write it as JSON lines, as the datasets library does by to_json(FILE)",
    b"\x93NUMPY": "an array of numpy: write it as text",
    b"\xff\xfe": "text in UTF-16: save it as UTF-8",
    b"\xfe\xff": "text in UTF-16: save it as UTF-8",
}


def foreign_kind(head: bytes) -> str:
    """What a file is, and what to do, if by its first bytes it is not text; "" if it may be text.

    >>> foreign_kind(b"PAR1...")[:14], foreign_kind("text;label".encode("utf-16-le"))[:14], foreign_kind(b"PAR 1")
    ('a Parquet file', 'text in UTF-16', '')
    """
    for beginning, kind in BEGINNINGS.items():
        if head.startswith(beginning):
            return kind
    if re.match(rb"(?i)\s*<(!doctype html|html)\b", head):
        return "a web page: fetch the file itself, by the link that downloads it"
    for half in (head[:40:2], head[1:40:2]):
        if len(half) > 3 and not any(half):
            return "text in UTF-16: save it as UTF-8"
    return ""
