"""The `tinybert` command: one module for each command."""

import sys


def main() -> None:
    """Run the command of `sys.argv`; see `entry.main`."""
    try:
        from tinybert_jax.cli import entry  # which needs packages that benchmarks on a bare GPU machine do without

        entry.main()
    except KeyboardInterrupt:  # while modules are imported
        print("\ntinybert: interrupted", file=sys.stderr)
        sys.exit(130)
