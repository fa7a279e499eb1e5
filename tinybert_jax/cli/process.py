"""The process of a command. Imports no package, so that a program can use it where the command line's are missing."""

from __future__ import annotations

import os
import sys


def prepare_process() -> None:
    """Keep libraries' hints to themselves, and on Linux start the program anew with glibc's huge pages, which it reads
    from the environment: XLA on CPU allocates its buffers anew in every step, a page fault per page.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and "glibc.malloc.hugetlb" not in tunables:
        os.environ["GLIBC_TUNABLES"] = f"{tunables}:glibc.malloc.hugetlb=1".lstrip(":")
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
