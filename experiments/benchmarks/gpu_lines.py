"""The lines that `gpu.py` and its parts write, and the versions of what they measure."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Numbers = dict[str, Any]
CORE = ("jax", "flax", "optax", "numpy", "jaxtyping", "wadler_lindig")  # the last is jaxtyping's
TORCH = ("torch", "transformers")


class Lines:
    """Appends what a part finds to a file, until a time."""

    def __init__(self, part: str, out: Path, until: float, tiny: bool) -> None:
        self.part, self.out, self.until, self.tiny = part, out, until, tiny
        self.last = 0.0  # seconds that the last measurement took

    def write(self, **line: Any) -> None:
        text = json.dumps({"part": self.part, **line})
        print(text, flush=True)
        with self.out.open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def measure(self, numbers: Callable[..., Numbers], **what: Any) -> None:
        """Write what `numbers(**what)` gives, or why it gives nothing; it is left out where it would end too late, did
        it take as long as the last.
        """
        start = time.time()
        if start + self.last > self.until:
            self.write(**what, skipped="no time left for it")
            return
        try:
            self.write(**what, **numbers(**what))
        except Exception as error:
            self.write(**what, error=first_line(error))
        self.last = time.time() - start


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"


def versions() -> Numbers:
    """The versions of the packages, and nvidia-smi's line where there is one."""
    numbers: Numbers = {"python": platform.python_version(), "cpus": os.cpu_count()}
    for name in ("jax", "jaxlib", *CORE[1:4], *TORCH):
        try:
            numbers[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            numbers[name] = None
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
        numbers["nvidia_smi"] = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return numbers
