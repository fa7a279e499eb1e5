"""The `tinybert` command: one module for each command."""

from tinybert_jax.cli.entry import main as main
