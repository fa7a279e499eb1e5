"""Text -> token sequences in ArrayRecord shards. Several processes build them, and a killed build is continued.

The text is read in units, and each unit gives one shard. A shard is a pure function of its unit, the recipe and its
number. So the bytes do not depend on the number of processes, and a continued build makes only the missing shards.

    00000.array_record   records: start of the second segment, ids; little-endian uint16, int32 for a large vocabulary
    00000.lengths.npy    uint16, tokens per record
    corpus.json          the recipe, and the shards with their checksums; written last
    journal.jsonl        the finished shards, for a continued build
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from tinybert_jax.data.corpus.sequences import Recipe, sequences
from tinybert_jax.data.corpus.text import READ_BYTES, Text, units
from tinybert_jax.errors import InputError
from tinybert_jax.settings.sources import CorpusSource

FORMAT_VERSION = 1  # of the shards; increase it when the same text would give others
MANIFEST, JOURNAL = "corpus.json", "journal.jsonl"
TEMPORARY = ".tmp-"


class Shard(NamedTuple):
    """A finished shard. The checksum covers the file of records and then the file of lengths."""

    name: str
    sequences: int
    sha256: str


def build_shards(source: CorpusSource, recipe: Recipe, text: Text, out: Path) -> None:
    """Build the shards of a source's files; see `corpus.build`.

    Args:
        source: the files, and the number of processes.
        recipe: how sequences are made of text.
        text: the result of `text.survey` on the files.
        out: the directory: new, empty, or from an earlier build of the same shards.

    Raises:
        InputError: the files have changed since `text.survey`; `out` holds something else, or cannot be written.
    """
    check_open_files(out, text.units)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()) and not (out / JOURNAL).is_file():
            raise InputError(f"{out}: not empty, and not a build of these shards: give another directory")
        with (out / JOURNAL).open("a+", encoding="utf-8") as journal:
            _lock(journal, out)
            finished = _finished_shards(journal, {"key": key(recipe, text)}, out)
            for leftover in out.glob(f"{TEMPORARY}*"):
                leftover.unlink()
            _build_missing(source, recipe, text, out, finished, journal)
            temporary = out / f"{TEMPORARY}{MANIFEST}"
            temporary.write_text(manifest(recipe, list(finished.values())), encoding="utf-8")
            temporary.rename(out / MANIFEST)
    except OSError as error:
        raise InputError(f"{out}: cannot write the shards ({error}): free space, or name another place") from error


def write_shard(directory: Path, number: int, text: bytes, recipe: Recipe) -> Shard:
    """Write the sequences of a unit of text. The two files appear by renaming.

    Raises:
        OSError: a file cannot be written.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    name = f"{number:05d}"
    files = shard_files(directory, name)
    temporary = [file.with_name(TEMPORARY + file.name) for file in files]
    lengths = []
    try:
        writer = ArrayRecordWriter(str(temporary[0]), "group_size:1")  # needed for random access
        for record in sequences(text, recipe, number):
            writer.write(record.tobytes())
            lengths.append(len(record) - 1)
        writer.close()
    except RuntimeError as error:  # ArrayRecord raises it for a full disk
        raise OSError(str(error)) from None
    with temporary[1].open("wb") as file:
        np.save(file, np.array(lengths, np.uint16), allow_pickle=False)
    for old, new in zip(temporary, files, strict=True):
        old.rename(new)
    sha256 = checksum(directory, name)
    assert sha256 is not None
    return Shard(name, len(lengths), sha256)


def manifest(recipe: Recipe, shards: Sequence[Shard]) -> str:
    """The content of `corpus.json`.

    Raises:
        InputError: the text gave no sequence.
    """
    if not any(shard.sequences for shard in shards):
        raise InputError("the tokenizer finds no tokens in the corpus: give other files")
    fields = _recipe_fields(recipe) | {"shards": [shard._asdict() for shard in sorted(shards)]}
    return json.dumps(fields, indent=1) + "\n"


def read_manifest(directory: Path) -> tuple[dict[str, Any], list[Shard], str]:
    """The recipe of a directory, without the tokenizer's JSON; its verified shards; and the manifest's sha256.

    Raises:
        InputError: the directory is not finished or damaged, or has more shards than files may be open.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise InputError(f"{directory}: no {MANIFEST}: not a directory of shards, or not finished: build it again")
    try:
        content = path.read_text(encoding="utf-8")
        recipe = json.loads(content)
        shards = [Shard(**shard) for shard in recipe.pop("shards")]
        version = recipe.pop("format_version")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: cannot be read ({error!r}): build the shards again") from None
    if version != FORMAT_VERSION:
        raise InputError(f"{path}: has format {version}, not {FORMAT_VERSION}: build the shards again")
    check_open_files(directory, len(shards))
    for shard in shards:
        if checksum(directory, shard.name) != shard.sha256:
            records = shard_files(directory, shard.name)[0]
            raise InputError(f"{records}: it, or its lengths, is missing or damaged: build the shards again")
    return recipe, shards, hashlib.sha256(content.encode()).hexdigest()


def key(recipe: Recipe, text: Text) -> str:
    """sha256 of all that determines the shards."""
    return hashlib.sha256(json.dumps([_recipe_fields(recipe), text.sha256], sort_keys=True).encode()).hexdigest()


def shard_files(directory: Path, name: str) -> tuple[Path, Path]:
    """The file of records and the file of lengths."""
    return directory / f"{name}.array_record", directory / f"{name}.lengths.npy"


def checksum(directory: Path, name: str) -> str | None:
    """The checksum of a shard, as in `Shard`; None if a file is missing."""
    digest = hashlib.sha256()
    for path in shard_files(directory, name):
        if not path.is_file():
            return None
        with path.open("rb") as file:
            while data := file.read(READ_BYTES):
                digest.update(data)
    return digest.hexdigest()


def check_open_files(directory: Path, shards: int) -> None:
    """Refuse more shards than files may be open.

    Raises:
        InputError: there are too many. The message has the command that allows more.
    """
    import resource

    limit, needed = resource.getrlimit(resource.RLIMIT_NOFILE)[0], shards + 200  # 200: the other files of a run
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise InputError(f"{directory}: {shards} shards, and only {limit} files may be open: run `ulimit -n {needed}`")


def _recipe_fields(recipe: Recipe) -> dict[str, Any]:
    fields = dataclasses.asdict(recipe) | {"dtype": recipe.dtype, "format_version": FORMAT_VERSION}
    del fields["frame"], fields["tokenizer"]  # the fingerprint is kept; the JSON also holds the last call's truncation
    return fields


def _lock(journal: TextIO, out: Path) -> None:
    """Wait until no other process builds there. The process may run on another host."""
    import fcntl

    try:
        fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"waiting for another process that builds {out}", file=sys.stderr)
        fcntl.flock(journal, fcntl.LOCK_EX)


def _finished_shards(journal: TextIO, header: dict[str, str], out: Path) -> dict[int, Shard]:
    """The journal's shards that exist and are undamaged, by number. A new journal gets its header."""
    journal.seek(0)
    *lines, torn = journal.read().split("\n")
    if not lines:
        journal.truncate(0)
        lines, torn = [json.dumps(header)], ""
        journal.write(lines[0] + "\n")
    if lines[0] != json.dumps(header):
        raise InputError(f"{out}: holds the shards of another text or recipe: give another directory")
    journal.write("\n" if torn else "")
    shards = []
    for line in lines[1:]:
        with contextlib.suppress(ValueError, TypeError):  # a kill interrupted its writing
            shards.append(Shard(**json.loads(line)))
    return {int(shard.name): shard for shard in shards if checksum(out, shard.name) == shard.sha256}


def _build_missing(
    source: CorpusSource, recipe: Recipe, text: Text, out: Path, finished: dict[int, Shard], journal: TextIO
) -> None:
    """Add the missing shards to the directory, to `finished` and to the journal."""
    from tqdm import tqdm

    content = hashlib.sha256()
    with tqdm(total=text.size, desc="tokenize", unit="B", unit_scale=True, delay=2) as bar:

        def missing() -> Iterator[tuple[int, bytes]]:
            for number, unit in enumerate(units(source.files, source.one_document_per_line)):
                content.update(unit)
                if number in finished:
                    bar.update(len(unit))
                else:
                    yield number, unit

        for shard, size in _build_units(missing(), recipe, out, min(source.processes, text.units - len(finished))):
            finished[int(shard.name)] = shard
            journal.write(json.dumps(shard._asdict()) + "\n")
            journal.flush()
            bar.update(size)
    if content.hexdigest() != text.sha256:
        shutil.rmtree(out)  # these shards do not match their key
        raise InputError(f"{', '.join(source.files)}: changed while they were read: run again")


def _build_units(
    missing: Iterator[tuple[int, bytes]], recipe: Recipe, out: Path, processes: int
) -> Iterator[tuple[Shard, int]]:
    """Build the shards of units: each shard when it is finished, and the size of its text. Few units are in memory."""
    if processes <= 1:
        for number, unit in missing:
            yield write_shard(out, number, unit, recipe), len(unit)
        return
    pending: dict[concurrent.futures.Future[Shard], int] = {}

    def done() -> Iterator[tuple[Shard, int]]:
        for future in concurrent.futures.wait(pending, return_when=concurrent.futures.FIRST_COMPLETED).done:
            yield future.result(), pending.pop(future)

    # No fork, because jax has threads. A spawned worker imports no jax.
    pool = concurrent.futures.ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _start_worker)
    try:
        with pool:
            for number, unit in missing:
                pending[pool.submit(write_shard, out, number, unit, recipe)] = len(unit)
                if len(pending) > processes:
                    yield from done()
            while pending:
                yield from done()
    except BrokenProcessPool:
        raise InputError(
            "a process that builds shards died: run again to continue, with fewer --processes if memory was short;"
            " a script of your own must start under `if __name__ == '__main__':`"
        ) from None


def _start_worker() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes already work in parallel
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker with its parent. Otherwise it would wait for ever for a parent that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
