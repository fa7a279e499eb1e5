"""Shards have the same bytes with any number of processes and after a kill; what is finished is not built again."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sequences_test import DOCUMENTS, join, make_tokenizer, read_back

from tinybert_jax.data.corpus import shards, text
from tinybert_jax.data.corpus.corpus import build, load
from tinybert_jax.errors import InputError
from tinybert_jax.settings.sources import CorpusSource

ROOT = Path(__file__).parent.parent.parent.parent
UNIT_BYTES, MAX_LENGTH = 2000, 24
# The body of a subprocess: arguments are processes, text, tokenizer, output, and seconds before each unit's shard.
BUILD = f"""
import sys, time
from transformers import BertTokenizer
from tinybert_jax.data.corpus import corpus, shards, text
from tinybert_jax.settings.sources import CorpusSource
text.UNIT_BYTES = {UNIT_BYTES}
processes, file, vocabulary, out, wait = sys.argv[1:]
def slowly(*args):
    for unit in text.units(*args):
        time.sleep(float(wait))
        yield unit
shards.units = slowly
source = CorpusSource((file,), pairs=True, processes=int(processes))
corpus.build(source, BertTokenizer(vocab=vocabulary), {MAX_LENGTH}, 0, corpus.Path(out))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    make_tokenizer(folder)
    (folder / "text.txt").write_text(join(DOCUMENTS * 4))
    return str(folder / "text.txt"), str(folder / "vocab0.txt")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("vocab"))


@pytest.fixture(autouse=True)
def _small_units(monkeypatch):
    monkeypatch.setattr(text, "UNIT_BYTES", UNIT_BYTES)


@pytest.fixture(scope="module")
def unbroken(files, tokenizer, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "UNIT_BYTES", UNIT_BYTES)
        build(CorpusSource((files[0],), pairs=True), tokenizer, MAX_LENGTH, 0, out)
    return contents(out)


def contents(out):
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != shards.JOURNAL}


def start(processes, files, out, wait=0.0):
    command = [sys.executable, "-c", BUILD, str(processes), *files, str(out), str(wait)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def children(process):
    """The processes that were started by another one."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in path.read_text().split()] if path.is_file() else []


def wait_until(condition, what, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.005)


def is_running(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("processes", [2, 3])
def test_bytes_do_not_depend_on_the_processes(files, tokenizer, tmp_path, unbroken, processes):
    build(CorpusSource((files[0],), pairs=True, processes=processes), tokenizer, MAX_LENGTH, 0, tmp_path / "out")
    assert contents(tmp_path / "out") == unbroken
    assert len(unbroken) > 20


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_build_goes_on_where_it_was(files, tokenizer, tmp_path, unbroken, processes):
    out = tmp_path / "out"
    journal = out / shards.JOURNAL
    process = start(processes, files, out, wait=0.05)
    wait_until(
        lambda: process.poll() is not None or (journal.is_file() and journal.read_text().count("\n") > 1),
        "a first shard",
    )
    workers = children(process)
    process.kill()
    process.wait()
    process.stdout.close()  # not read to its end: a worker that lives on would keep it open
    assert process.returncode == -signal.SIGKILL, "the build was over before it could be killed"
    wait_until(lambda: not any(map(is_running, workers)), "the end of the killed one's workers")
    assert not (out / shards.MANIFEST).exists()
    with pytest.raises(InputError, match="not finished"):
        load(out)
    finished = [line.split('"')[3] for line in journal.read_text().split("\n")[1:-1]]
    records = [out / f"{name}.array_record" for name in finished]
    before = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in records]
    assert records
    build(CorpusSource((files[0],), pairs=True), tokenizer, MAX_LENGTH, 0, out)
    assert contents(out) == unbroken
    assert [(path.stat().st_ino, path.stat().st_mtime_ns) for path in records] == before


def test_a_journal_that_was_torn_is_read(files, tokenizer, tmp_path, unbroken):
    out = tmp_path / "out"
    source = CorpusSource((files[0],), pairs=True)
    build(source, tokenizer, MAX_LENGTH, 0, out)
    journal = out / shards.JOURNAL
    for torn in (journal.read_text()[:-30], '{"key'):
        journal.write_text(torn)
        (out / ".tmp-00007.array_record").write_bytes(b"half")
        build(source, tokenizer, MAX_LENGTH, 0, out)
        assert contents(out) == unbroken
        assert journal.read_text().count("sha256") >= 20


def test_two_builds_at_once_do_not_disturb_each_other(files, tmp_path, unbroken):
    both = [start(1, files, tmp_path / "out", wait=0.01) for _ in range(2)]
    output = "".join(process.communicate()[0] for process in both)
    assert [process.returncode for process in both] == [0, 0], output
    assert "waiting for another process" in output
    assert contents(tmp_path / "out") == unbroken


def test_another_text_or_recipe_is_not_mixed_in(files, tokenizer, tmp_path):
    source = CorpusSource((files[0],))
    build(source, tokenizer, MAX_LENGTH, 0, tmp_path / "out")
    with pytest.raises(InputError, match="another text or recipe"):
        build(source, tokenizer, MAX_LENGTH, 1, tmp_path / "out")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        build(source, tokenizer, MAX_LENGTH, 0, tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.tex"]


def test_a_file_that_changes_while_it_is_read_gives_no_corpus(tokenizer, tmp_path, monkeypatch):
    file = tmp_path / "text.txt"
    file.write_text(join(DOCUMENTS))
    write = shards.write_shard

    def write_and_change(*args):
        file.write_text(join(DOCUMENTS[::-1]) * 2)
        return write(*args)

    monkeypatch.setattr(shards, "write_shard", write_and_change)
    with pytest.raises(InputError, match="changed while they were read"):
        build(CorpusSource((str(file),)), tokenizer, MAX_LENGTH, 0, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_worker_that_dies_is_one_line(files, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_start_worker", die)
    with pytest.raises(InputError, match="run again to continue") as error:
        build(CorpusSource((files[0],), processes=2), tokenizer, MAX_LENGTH, 0, tmp_path / "out")
    assert "\n" not in str(error.value)


def die():
    os._exit(1)


def test_workers_import_no_jax():
    code = "import sys, tinybert_jax.data.corpus.shards; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_text_without_tokens_is_refused(tokenizer, tmp_path):
    (tmp_path / "text.txt").write_text("\x07\x08\n")  # characters that the tokenizer drops
    with pytest.raises(InputError, match="finds no tokens"):
        build(CorpusSource((str(tmp_path / "text.txt"),)), tokenizer, MAX_LENGTH, 0, tmp_path / "out")


def test_more_shards_than_open_files_are_refused_at_once(files, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (210, 1000))
    with pytest.raises(InputError, match=r"only 210 files may be open: run `ulimit -n \d+`"):
        build(CorpusSource((files[0],)), tokenizer, MAX_LENGTH, 0, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_refused(files, tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write the shards"):
        build(CorpusSource((files[0],)), tokenizer, MAX_LENGTH, 0, tmp_path / "file" / "out")


def test_a_full_disk_is_one_line_and_the_build_goes_on_later(files, tokenizer, tmp_path, unbroken):
    source = CorpusSource((files[0],), pairs=True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(InputError, match="cannot write the shards") as error:
            build(source, tokenizer, MAX_LENGTH, 0, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    build(source, tokenizer, MAX_LENGTH, 0, tmp_path / "out")
    assert contents(tmp_path / "out") == unbroken


def test_records_are_pair_start_and_ids(files, tokenizer, tmp_path):
    build(CorpusSource((files[0],), pairs=True), tokenizer, MAX_LENGTH, 0, tmp_path / "out")
    for pair_start, *ids in read_back(tmp_path / "out" / "00000.array_record"):
        assert ids[0] == tokenizer.cls_token_id
        assert ids[pair_start - 1] == ids[-1] == tokenizer.sep_token_id
