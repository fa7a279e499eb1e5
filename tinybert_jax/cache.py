"""The user's cache folder. An entry is a folder that appears by one rename. Large entries are written in parts."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import numpy as np

from tinybert_jax.errors import InputError

T = TypeVar("T")
SAVE_EVERY = 10.0  # seconds between saves of the progress of `append_parts`
TITLE = "title.txt"  # file in an entry: what it holds, for `tinybert cache`
STALE = 24 * 3600.0  # seconds after which an unfinished entry of another run counts as abandoned
PARTIAL = ".partial-"  # prefix of an entry that is not complete


def cache_folder(cache_dir: Path | None) -> Path:
    """`cache_dir`; else `$TINYBERT_JAX_CACHE`, `$XDG_CACHE_HOME/tinybert_jax` or `~/.cache/tinybert_jax`.

    Raises:
        InputError: none of these is set, and the user has no home directory.
    """
    if cache_dir is not None:
        return cache_dir
    if folder := os.environ.get("TINYBERT_JAX_CACHE"):
        return Path(os.path.expanduser(folder))
    caches = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if caches.startswith("~"):
        raise InputError("the user has no home directory to keep the cache in: set TINYBERT_JAX_CACHE to a folder")
    return Path(caches) / "tinybert_jax"


class Entry(NamedTuple):
    """An entry of the cache: a folder that is complete, or whose writing was interrupted."""

    path: Path
    bytes: int
    used: float  # seconds since 1970
    title: str  # what it holds; "" if there is no title
    whole: bool  # complete

    @property
    def kind(self) -> str:
        """The kind of entry: `tokens`, `targets` and so on."""
        return self.path.parent.name


def entries(cache_dir: Path | None = None) -> list[Entry]:
    """All entries, the largest first."""
    listed = []
    for path in cache_folder(cache_dir).glob("*/*"):
        if not re.fullmatch(r"(\.partial-)?[0-9a-f]{16,}|\.tmp-\w+", path.name):
            continue  # the folder may hold other things too
        with contextlib.suppress(OSError):  # another process has just removed it
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            title = ""
            with contextlib.suppress(OSError):
                title = (path / TITLE).read_text("utf-8")
            listed.append(Entry(path, size, path.stat().st_mtime, title, not path.name.startswith(".")))
    return sorted(listed, key=lambda entry: (-entry.bytes, entry.path))


def remove(entry: Entry) -> bool:
    """Remove an entry, unless another process is writing it. Runs that read it continue; a later run writes it again.

    Returns:
        Whether it was removed.
    """
    if entry.path.name.startswith(".tmp-") and time.time() - entry.used < STALE:
        return False
    if entry.path.name.startswith(PARTIAL):
        with (entry.path / "lock").open("w") as lock:
            if not _locked(lock):
                return False
    shutil.rmtree(entry.path, ignore_errors=True)
    return True


def cached(entry: Path, build: Callable[[Path], None], load: Callable[[Path], T], resumable: bool = False) -> T:
    """Return `load(entry)`. If the folder `entry` is missing or does not load, `build` fills it first.

    The folder appears by one rename. So a killed process leaves no half-written entry, and if two processes race, one
    wins. With `resumable`, `build` gets the folder of an interrupted call, if there is one, and continues there.

    Raises:
        InputError: the cache cannot be written.
    """
    try:
        return _load_or_build(entry, build, load, resumable)
    except FileNotFoundError:  # another process has removed the entry, to make room for its own
        return _load_or_build(entry, build, load, resumable)


def _load_or_build(entry: Path, build: Callable[[Path], None], load: Callable[[Path], T], resumable: bool) -> T:
    corrupt = False
    if entry.is_dir():
        try:
            loaded = load(entry)
            with contextlib.suppress(OSError):  # another user owns it
                os.utime(entry)  # the entries that were used longest ago are removed first
            return loaded
        except Exception as error:  # a damaged file can fail in any way, and the remedy is the same
            logging.getLogger(__name__).warning("%s does not load (%s); it is built again", entry, error)
            corrupt = True
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=entry.parent, prefix=".tmp-", ignore_cleanup_errors=True) as temporary,
            _folder_to_fill(entry, Path(temporary), resumable) as new,
        ):
            build(new)
            if corrupt:
                with contextlib.suppress(FileNotFoundError):  # another process has just moved it away
                    entry.rename(Path(temporary) / "old")
            try:
                new.rename(entry)
            except OSError:
                if not entry.is_dir():
                    raise
                shutil.rmtree(new, ignore_errors=True)
                # Another process was first. Entries of the same key have the same content, so that one is used.
    except OSError as error:
        raise InputError(f"{entry.parent}: cannot write the cache ({error}): set TINYBERT_JAX_CACHE") from error
    return load(entry)


@contextlib.contextmanager
def _folder_to_fill(entry: Path, temporary: Path, resumable: bool) -> Iterator[Path]:
    """A new folder in `temporary`; or the entry's partial one, unless another process is filling it."""
    if resumable:
        partial = partial_of(entry)
        partial.mkdir(exist_ok=True)
        with (partial / "lock").open("w") as lock:
            if _locked(lock):
                yield partial
                return
    new = temporary / "new"
    new.mkdir()
    yield new


def partial_of(entry: Path) -> Path:
    """The folder of an entry while it is not complete."""
    return entry.parent / f"{PARTIAL}{entry.name}"


def _locked(lock: IO[str]) -> bool:
    """Take the lock without waiting, and return whether that succeeded. It fails on file systems without locks."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def append_parts(folder: Path, title: str, files: int, parts: Callable[[int], Iterable[Sequence[bytes]]]) -> None:
    """Write the files `0.bin`, `1.bin`, ... part by part, and their checksums at the end.

    If an earlier call was interrupted, this one continues after the last part that is known to be on disk.

    Args:
        folder: is empty, or holds the files of an interrupted call.
        title: what `tinybert cache` prints about the entry.
        files: the number of files.
        parts: `parts(i)` yields part i and the following ones. A part has the next bytes of every file.
    """
    (folder / TITLE).write_text(title, "utf-8", "backslashreplace")
    progress, paths = folder / "progress.json", [folder / f"{number}.bin" for number in range(files)]
    done, sizes, checksums = 0, [0] * files, [0] * files
    with contextlib.suppress(OSError, ValueError, KeyError):
        read = json.loads(progress.read_text("utf-8"))
        if all(path.stat().st_size >= size for path, size in zip(paths, read["sizes"], strict=True)):
            done, sizes, checksums = read["parts"], read["sizes"], read["checksums"]
    # Files are written, not mapped: on a full disk, a write raises, but a write to a map kills the process.
    with contextlib.ExitStack() as opened:
        for path, size in zip(paths, sizes, strict=True):
            path.touch()
            os.truncate(path, size)
        appended = [opened.enter_context(path.open("ab")) for path in paths]

        def save() -> None:
            for file in appended:
                file.flush()
                os.fsync(file.fileno())
            new = folder / "progress.new"
            new.write_text(json.dumps({"parts": done, "sizes": sizes, "checksums": checksums}), "utf-8")
            os.replace(new, progress)

        saved = time.monotonic()
        try:
            for part in parts(done):
                for file, content in zip(appended, part, strict=True):
                    file.write(content)
                new_sizes = [size + len(content) for size, content in zip(sizes, part, strict=True)]
                new_sums = [zlib.crc32(content, checksum) for content, checksum in zip(part, checksums, strict=True)]
                done, sizes, checksums = done + 1, new_sizes, new_sums  # together: Ctrl-C may come at any moment
                if time.monotonic() - saved > SAVE_EVERY:
                    save()
                    saved = time.monotonic()
        finally:  # also when a part could not be computed: those before it are not lost
            save()
    (folder / "checksums.json").write_text(json.dumps(checksums), "utf-8")


def check_parts(folder: Path) -> None:
    """Read the files that `append_parts` wrote, and check their checksums.

    Raises:
        ValueError: a checksum is wrong.
    """
    for number, expected in enumerate(json.loads((folder / "checksums.json").read_text("utf-8"))):
        checksum = 0
        with (folder / f"{number}.bin").open("rb") as file:
            while part := file.read(1 << 24):
                checksum = zlib.crc32(part, checksum)
        if checksum != expected:
            raise ValueError(f"the checksum of {number}.bin is wrong")


def cached_arrays(
    cache_dir: Path | None, kind: str, fingerprint: str, make: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The named arrays of `make()`, cached under `kind` and `fingerprint`. The fingerprint covers all they depend on.

    Raises:
        InputError: the cache cannot be written.
    """

    def build(folder: Path) -> None:
        np.savez(folder / f"{kind}.npz", allow_pickle=False, **make())

    def load(folder: Path) -> dict[str, np.ndarray]:
        # An .npz is a zip, so every array has a checksum. numpy does not close a damaged file that it opened itself.
        with open(folder / f"{kind}.npz", "rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}

    return cached(cache_folder(cache_dir) / kind / fingerprint, build, load)
