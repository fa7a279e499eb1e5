"""The process of a command. This module imports no package, so it works without the command line's packages."""

from __future__ import annotations

import os
import sys


def prepare_process() -> None:
    """Silence libraries' hints. On Linux, start the program again with glibc's huge pages.

    XLA on a CPU allocates its buffers in every step, with a page fault for each page. glibc reads the setting from the
    environment at the program's start.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and "glibc.malloc.hugetlb" not in tunables:
        os.environ["GLIBC_TUNABLES"] = f"{tunables}:glibc.malloc.hugetlb=1".lstrip(":")
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
