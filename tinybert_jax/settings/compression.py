"""The base of the settings of a compression method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class CompressionSettings:
    """The base of the settings of a compression method. A subclass adds the numbers that only its method reads."""

    name: ClassVar[str]  # in `experiment.json`
