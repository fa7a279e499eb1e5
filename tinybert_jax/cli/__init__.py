"""The `tinybert` command: one module for each command."""
