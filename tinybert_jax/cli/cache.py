"""The command `tinybert cache`."""

from __future__ import annotations

import time

from tinybert_jax.cache import cache_folder, entries
from tinybert_jax.cache import remove as remove_entry
from tinybert_jax.errors import InputError
from tinybert_jax.reports.tables import print_table

SHOWN = 40  # entries; the smaller ones are counted together


def cache(remove: str | None = None, unused_days: float = 0.0) -> None:
    """List or remove what is cached on disk: tokens of rows, teacher outputs, compiled programs and others.

    The folder is $TINYBERT_JAX_CACHE, or ~/.cache/tinybert_jax. Removed entries are computed again when needed.

    Args:
        remove: remove the entries of this kind (tokens, targets, ... as in the list), or all. Default: only list.
        unused_days: list or remove only entries that have not been used for this number of days.
    """
    folder, now = cache_folder(None), time.time()
    everything = entries()
    listed = [entry for entry in everything if now - entry.used >= 86400 * unused_days]
    if remove is not None:
        kinds = sorted({entry.kind for entry in everything})
        if remove not in (*kinds, "all"):
            raise InputError(f"--remove {remove}: the kinds in {folder} are {', '.join(kinds) or 'none'}; or give all")
        chosen = [entry for entry in listed if remove in (entry.kind, "all")]
        removed = [entry for entry in chosen if remove_entry(entry)]
        print(f"{len(removed)} entries removed, {_size(sum(entry.bytes for entry in removed))}")
        if len(removed) < len(chosen):
            print(f"{len(chosen) - len(removed)} kept, which another run is writing")
        return
    if not listed:
        print(f"{folder} holds nothing" if not unused_days else f"nothing in {folder} is unused for so long")
        return
    rows = [
        [
            entry.kind,
            _size(entry.bytes),
            f"{(now - entry.used) / 86400:.1f}",
            (entry.title or entry.path.name[:16]) + ("" if entry.whole else " (interrupted)"),
        ]
        for entry in listed[:SHOWN]
    ]
    if len(listed) > SHOWN:
        rest = listed[SHOWN:]
        rows.append(["", _size(sum(entry.bytes for entry in rest)), "", f"{len(rest)} smaller entries"])
    print_table(["kind", "size", "days unused", "what"], rows)
    print(f"{_size(sum(entry.bytes for entry in listed))} in {folder}")


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
