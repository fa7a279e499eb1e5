"""Write docs/commands.md: the help of every command.

python docs/commands.py
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).with_suffix(".md")
WIDTH = 120


def help_of(*command: str) -> str:
    """What `tinybert COMMAND --help` prints."""
    environment = os.environ | {"COLUMNS": str(WIDTH), "NO_COLOR": "1", "JAX_PLATFORMS": "cpu"}
    arguments = [sys.executable, "-m", "tinybert_jax.cli", *command, "--help"]
    return subprocess.run(arguments, check=True, capture_output=True, text=True, env=environment).stdout


def unframed(text: str) -> str:
    """Help without the boxes around its groups, whose titles stay."""
    lines = []
    for line in text.strip().splitlines():
        if title := re.match("╭─ (.*?) ─*╮", line):
            lines += ["", f"{title[1]}:"]
        elif not re.match("╰─|│ ─+ │", line):
            lines.append(re.sub(r"^│(.*)│$", r"\1", line).rstrip())
    return "\n".join(lines)


def commands() -> list[str]:
    """The names of all commands."""
    from tinybert_jax.cli.entry import COMMANDS

    return list(COMMANDS)


def main() -> None:
    """Write the page."""
    parts = ["# Commands\n\nThis is what `--help` prints (`python docs/commands.py` writes it)."]
    for name in commands():
        parts.append(f"## tinybert {name}\n```\n{unframed(help_of(name))}\n```")
    PAGE.write_text("\n\n".join(parts) + "\n", "utf-8")
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
