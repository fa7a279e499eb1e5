"""A file that is no text, or not the file itself, is refused for what it is, whoever reads it."""

from __future__ import annotations

import gzip
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY

import tinybert_jax as tb
from tinybert_jax.data.augmentation.neighbours import read_vectors
from tinybert_jax.data.corpus.text import units
from tinybert_jax.data.rows import read_rows
from tinybert_jax.data.stream import stream_rows
from tinybert_jax.models.files.directory import load_config
from tinybert_jax.models.files.tokenizer import load_tokenizer
from tinybert_jax.settings.sources import TextForm
from tinybert_jax.settings.tasks import get_task
from tinybert_jax.tasks.ner import read_conll
from tinybert_jax.tasks.squad import read_squad

TEXT = "text,label\nf\u00fcr dich,pos\nschlecht,neg\n"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234\n"
KINDS = {
    "pointer": (POINTER, "a pointer of Git LFS, not the file: fetch it with `git lfs pull`"),
    "gzip": (gzip.compress(TEXT.encode()), "compressed by gzip: unpack it with gunzip"),
    "workbook": (b"PK\3\4\x14\0", "a zip archive or an Excel workbook: unpack it, or save its sheet as CSV"),
    "parquet": (b"PAR1\x15\4", "a Parquet file: write it as JSON lines"),
    "utf-16 with a mark": (TEXT.encode("utf-16"), "text in UTF-16: save it as UTF-8"),
    "utf-16": (TEXT.encode("utf-16-be"), "text in UTF-16: save it as UTF-8"),
    "page": (b"<!DOCTYPE html>\n<html lang=en>\n", "a web page: fetch the file itself"),
}


def read_table(path: Path) -> Any:
    path = path.rename(path.with_suffix(".csv"))
    return read_rows(get_task("classification"), tb.DataSource(train=str(path)), "train")


READERS: dict[str, Callable[[Path], Any]] = {
    "table": read_table,
    "stream": lambda path: list(stream_rows(path, path.read_bytes().splitlines(True), "txt", TextForm(("text",)))),
    "corpus": lambda path: list(units([str(path)], one_document_per_line=True)),
    "conll": read_conll,
    "squad": read_squad,
    "vectors": read_vectors,
}
READ_COMPRESSED = ("vectors",)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_no_text_is_refused_for_what_it_is(kind: str, reader: str, tmp_path: Path) -> None:
    content, message = KINDS[kind]
    if reader in READ_COMPRESSED and kind in ("gzip", "workbook"):
        pytest.skip("it has an answer of its own")
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(tb.InputError) as error:
        READERS[reader](tmp_path / "file")
    assert f": {message}" in str(error.value)


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_binary_vectors_are_refused_with_how_to_write_them_as_text(compress: Any, tmp_path: Path) -> None:
    words = b"".join(word + struct.pack("<3f", 0.1, 2**-20, 0.5) + b"\n" for word in (b"the ", b"film "))
    (tmp_path / "news.bin").write_bytes(compress(b"2 3\n" + words))
    with pytest.raises(tb.InputError, match=r"news\.bin: binary, as word2vec's .*load_word2vec_format\('news\.bin'"):
        read_vectors(tmp_path / "news.bin")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"])
def test_a_models_file_that_was_not_fetched_is_named(file: str, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(TINY, tmp_path / "bert"))
    if file == "vocab.txt":
        (directory / "tokenizer.json").unlink()
    (directory / file).write_bytes(POINTER)
    with pytest.raises(tb.InputError, match=rf"{file}: a pointer of Git LFS, not the file"):
        load_tokenizer(directory, load_config(directory))
