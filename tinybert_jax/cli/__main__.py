"""`python -m tinybert_jax.cli` is the command `tinybert`."""

from tinybert_jax.cli import main

if __name__ == "__main__":
    main()
