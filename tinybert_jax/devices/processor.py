"""The processor: its name, its instructions for products in 8 bits, and how much of it this process has."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import NamedTuple

CPUINFO, STAT, STATUS = Path("/proc/cpuinfo"), Path("/proc/stat"), Path("/proc/self/status")  # of Linux
# Linux's name -> the makers' name
INT8_INSTRUCTIONS = {
    "avx512_vnni": "AVX512-VNNI",
    "avx_vnni": "AVX-VNNI",
    "amx_int8": "AMX",
    "asimddp": "dot product",
    "i8mm": "I8MM",
}


class Processor(NamedTuple):
    """A kind of processor."""

    name: str
    int8: tuple[str, ...] | None  # its instructions for products in 8 bits; None: unknown


def processor() -> Processor:
    """The processor of this machine. Its instructions are known on Linux only."""
    facts = _facts()
    name = facts.get("model name") or platform.processor() or platform.machine()
    flags = instructions()
    if not flags:
        return Processor(name, None)
    return Processor(name, tuple(title for flag, title in INT8_INSTRUCTIONS.items() if flag in flags.split()))


def instructions() -> str:
    """All instruction sets of this machine, as Linux lists them; "" on other systems."""
    facts = _facts()
    return facts.get("flags") or facts.get("Features") or ""  # the latter on ARM


def _facts() -> dict[str, str]:
    """The fields of Linux's /proc/cpuinfo for the first processor."""
    lines = CPUINFO.read_text("utf-8", "replace").splitlines() if CPUINFO.is_file() else []
    pairs = [(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    return dict(reversed(pairs))


def processors() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy_share() -> float:
    """The share of the machine's processors that other work uses, measured over one second; 0 if it is unknown."""

    def jiffies() -> list[int]:
        return [int(number) for number in STAT.read_text().split("\n", 1)[0].split()[1:9]]

    if not STAT.is_file():
        return 0.0
    before = jiffies()
    time.sleep(1)
    spent = [now - then for now, then in zip(jiffies(), before, strict=True)]
    return 1 - spent[3] / max(sum(spent), 1)  # the fourth is idle


class Memory(NamedTuple):
    """The memory of this process in MB."""

    now: float
    most: float  # the peak so far


def memory() -> Memory | None:
    """The resident memory of this process; None if the system has no /proc.

    `resource.getrusage` would include the peak of the process that started this one.
    """
    if not STATUS.is_file():
        return None
    fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
    return Memory(*(int(fields[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM")))
