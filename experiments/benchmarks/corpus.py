"""Text to shards of token sequences: MB/s with 1, 2 and 3 processes, and the memory that ten times the text takes.

    python experiments/benchmarks/corpus.py [--text FILE] [--model DIR] [--megabytes 100] [--json FILE]

The text, or synthetic one, is repeated to N and to 10 N MB. Each build runs in an interpreter of its own, which tells
the seconds of the build alone, both readings of the text included, and the peak resident memory of the process that
reads and of its largest worker. A unit of text, which is one process's work, is 32 MB: under a hundred there is little
to share. With 1 process the tokenizer uses all cores by itself.
"""

from __future__ import annotations

import contextlib
import json as json_module
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import tyro

from tinybert_jax.settings.sources import CorpusSource

PROCESSES = (1, 2, 3)
ONE_BUILD = "one-build"  # marks the interpreter that builds
DOCUMENT_WORDS, SENTENCE_WORDS = 400, 20


def synthetic(tokenizer_file: Path, size: int = 1 << 20) -> bytes:
    """Documents of words of the vocabulary, common ones first."""
    vocabulary = json_module.loads(tokenizer_file.read_text(encoding="utf-8"))["model"]["vocab"]
    words = [word for word in vocabulary if word.isalpha()]
    random = np.random.default_rng(0)
    text = bytearray()
    while len(text) < size:
        chosen = [words[rank % len(words)] for rank in random.zipf(1.2, DOCUMENT_WORDS)]
        starts = range(0, DOCUMENT_WORDS, SENTENCE_WORDS)
        text += "\n".join(" ".join(chosen[i : i + SENTENCE_WORDS]) + "." for i in starts).encode() + b"\n\n"
    return bytes(text)


def repeated(text: bytes, size: int, path: Path) -> None:
    """A file of at least that many bytes."""
    with path.open("wb") as file:
        while file.tell() < size:
            file.write(text + b"\n\n")


def peak(status: Path) -> float:
    """A process's peak resident memory in MB; getrusage would count that of the process it was started from."""
    return next(
        (int(line.split()[1]) / 1e3 for line in status.read_text().split("\n") if line.startswith("VmHWM")), 0.0
    )


def watch_workers(peaks: list[float]) -> None:
    """Appends the peaks of the processes that this one started, for ever."""
    while True:
        for children in Path("/proc/self/task").glob("*/children"):
            with contextlib.suppress(OSError):  # it has ended
                peaks += [peak(Path(f"/proc/{pid}/status")) for pid in children.read_text().split()]
        time.sleep(0.2)


def one_build(model: str, text: str, out: str, processes: str) -> None:
    """Prints seconds, sequences, and the peak memory in MB of this process and of the largest of its workers."""
    from transformers import AutoTokenizer

    from tinybert_jax.data.corpus.corpus import build, load

    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    workers = [0.0]
    threading.Thread(target=watch_workers, args=[workers], daemon=True).start()
    start = time.perf_counter()
    build(CorpusSource((text,), processes=int(processes)), tokenizer, 128, 0, Path(out))
    seconds = time.perf_counter() - start
    print(json_module.dumps([seconds, len(load(Path(out))), peak(Path("/proc/self/status")), max(workers)]))


def main(
    text: Path | None = None, model: Path | None = None, megabytes: float = 100, json: Path | None = None
) -> None:
    """Measure the building of shards.

    Args:
        text: what is repeated; without it, synthetic text.
        model: Hugging Face directory whose tokenizer is used.
        megabytes: N, the size of the smaller file.
        json: file to append the result to, as one line.
    """
    import measure  # not above: it starts the program anew and watches the machine, and each build is this file again

    directory = model or measure.default_teacher()
    content = synthetic(directory / "tokenizer.json") if text is None else text.read_bytes()
    numbers: dict[str, float | int | str] = {"text": "synthetic" if text is None else text.name}
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "text.txt"
        for size in (megabytes, 10 * megabytes):
            repeated(content, int(size * 1e6), file)
            for processes in PROCESSES:
                command = [ONE_BUILD, str(directory), str(file), f"{temporary}/{size}-{processes}", str(processes)]
                done = subprocess.run([sys.executable, __file__, *command], check=True, stdout=subprocess.PIPE)
                seconds, sequences, main_process, worker = json_module.loads(done.stdout)
                name = f"{size:g}MB_{processes}p"
                numbers[f"{name}_MB/s"] = file.stat().st_size / 1e6 / seconds
                numbers[f"{name}_peak_MB"] = main_process
                numbers[f"{name}_worker_peak_MB"] = worker
            numbers[f"{size:g}MB_sequences"] = sequences

    measure.report("corpus", numbers, json)


if __name__ == "__main__":
    if sys.argv[1:2] == [ONE_BUILD]:
        one_build(*sys.argv[2:])
    else:
        tyro.cli(main)
