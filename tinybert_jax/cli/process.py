"""The process of a command. This module imports no package, so it works without the command line's packages."""

from __future__ import annotations

import io
import os
import sys


def prepare_process() -> None:
    """Silence libraries' hints, and let every message be printed. Where it needs it, start the program again: on Linux
    with glibc's huge pages, and where file names are not in UTF-8, with names, and output, in UTF-8.

    XLA on a CPU allocates its buffers in every step, with a page fault for each page. glibc and Python read their
    settings from the environment at the program's start.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    changed = {}
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and "glibc.malloc.hugetlb" not in tunables:
        changed["GLIBC_TUNABLES"] = f"{tunables}:glibc.malloc.hugetlb=1".lstrip(":")
    # Libraries in Rust, such as the tokenizers', take names as UTF-8 in any case.
    if sys.getfilesystemencoding().lower() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        changed["PYTHONUTF8"] = "1"
    if changed:
        os.environ.update(changed)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):  # a path or text may hold what an ASCII terminal has not
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
