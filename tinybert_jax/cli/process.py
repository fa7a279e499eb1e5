"""Setup of a command's process. This module imports only the standard library, so it works on a bare machine."""

from __future__ import annotations

import io
import os
import sys


def prepare_process() -> None:
    """Silence hints of libraries and let every message be printed. If needed, start the program again: on Linux with
    huge pages for glibc, and where file names are not in UTF-8, with UTF-8 for file names and output.

    glibc and Python read these settings from the environment when a program starts. Huge pages save time because XLA
    on a CPU allocates its buffers in every step, with a page fault for each page.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    changed = {}
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and "glibc.malloc.hugetlb" not in tunables:
        changed["GLIBC_TUNABLES"] = f"{tunables}:glibc.malloc.hugetlb=1".lstrip(":")
    # Libraries in Rust, such as tokenizers, always read file names as UTF-8.
    if sys.getfilesystemencoding().lower() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        changed["PYTHONUTF8"] = "1"
    if changed:
        os.environ.update(changed)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):  # a path or text may have characters that an ASCII terminal lacks
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
