"""The `tinybert` command: one module for each command."""


def main() -> None:
    """Run the command of `sys.argv`; see `entry.main`."""
    from tinybert_jax.cli import entry  # which needs packages that benchmarks on a bare GPU machine do without

    entry.main()
