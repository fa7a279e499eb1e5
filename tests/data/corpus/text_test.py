"""Units hold all of the text, end where documents do, and are small; what is wrong is named by file and line."""

import gzip

import pytest

from tinybert_jax.data.corpus import text
from tinybert_jax.data.corpus.sequences import split_documents
from tinybert_jax.data.corpus.text import survey, units
from tinybert_jax.errors import InputError
from tinybert_jax.settings.sources import CorpusSource


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(text, "UNIT_BYTES", 100)
    monkeypatch.setattr(text, "READ_BYTES", 7)  # borders fall into the middle of lines and characters


def write(folder, **contents):
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return tuple(str(folder / name) for name in contents)


def documents(text_units, one_document_per_line=False):
    return [d for unit in text_units for d in split_documents(unit, one_document_per_line)]


TEXT = "".join(f"line {i} ä\nline {i} 水\n \t\n\n" for i in range(30)).encode()


@pytest.mark.parametrize("one_document_per_line", [False, True])
def test_units_hold_whole_documents_in_order(tmp_path, one_document_per_line):
    files = write(tmp_path, a=TEXT)
    text_units = list(units(files, one_document_per_line))
    assert len(text_units) > 5
    assert max(map(len, text_units)) <= 100
    assert documents(text_units, one_document_per_line) == documents([TEXT], one_document_per_line)


def test_reading_in_larger_pieces_gives_the_same_units(tmp_path, monkeypatch):
    files = write(tmp_path, a=TEXT)
    text_units = list(units(files, False))
    monkeypatch.setattr(text, "READ_BYTES", 1000)
    assert list(units(files, False)) == text_units


def test_a_document_longer_than_a_unit_is_cut_at_a_line(tmp_path):
    files = write(tmp_path, a=b"twenty bytes a line.\n" * 20)
    text_units = list(units(files, False))
    assert len(text_units) == 5
    assert all(unit.endswith(b".\n") for unit in text_units[:-1])
    assert sum(len(d) for d in documents(text_units)) == 20


def test_a_file_ends_a_document(tmp_path):
    files = write(tmp_path, a=b"one", b=b"\xef\xbb\xbftwo\n", c=b"three\n\n")
    assert documents(units(files, False)) == [["one"], ["two"], ["three"]]


def test_compressed_files_are_read_as_the_plain_ones(tmp_path):
    plain, packed = (tmp_path / "a.txt"), (tmp_path / "b.gz")
    plain.write_bytes(TEXT)
    packed.write_bytes(gzip.compress(TEXT[:500]) + gzip.compress(TEXT[500:]))
    assert list(units([str(plain)], False)) == list(units([str(packed)], False))


def test_survey_counts_and_tells_texts_apart(tmp_path):
    first, second = write(tmp_path, a=TEXT, b=TEXT[:-9] + b"!\n\n")
    text_units = list(units([first], False))
    one, other = survey(CorpusSource((first,))), survey(CorpusSource((second,)))
    assert (one.size, one.units) == (sum(map(len, text_units)), len(text_units))
    assert one.sha256 != other.sha256


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "bad:1: the file is empty"),
        (b" \n\n", "bad:1: the file is empty"),
        (TEXT + b"one\n\xe4h\n", "bad:122: byte 0xe4 is not UTF-8"),
        (b"one\nt\0w\0o\0\n" + TEXT, "bad:2: a NUL byte"),
        (b"one\n" + b"two " * 100, "bad: a line has more than 100 bytes"),
    ],
    ids=["empty", "blank", "latin-1", "utf-16", "one line"],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, content, message):
    files = write(tmp_path, good=TEXT, bad=content)
    with pytest.raises(InputError, match=message) as error:
        survey(CorpusSource(files))
    assert "\n" not in str(error.value)


def test_what_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "cut.gz").write_bytes(gzip.compress(TEXT)[:-20])
    (tmp_path / "plain.gz").write_bytes(TEXT)
    for name, message in [
        ("none", "none: no such file"),
        (".", "a directory: give text files"),
        ("cut.gz", "cut.gz: cannot be read"),
        ("plain.gz", "plain.gz: cannot be read"),
    ]:
        with pytest.raises(InputError, match=message):
            survey(CorpusSource((str(tmp_path / name), str(tmp_path / name))))
