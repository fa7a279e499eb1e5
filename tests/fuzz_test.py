"""Whatever a file of text holds, it is read as it is written, or refused with one line that names it.

Each test is a law on generated files; valid ones are damaged, too. FUZZ_EXAMPLES=2000 tries so many a law.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
from fuzzing import damaged, law, put, read_or_refused
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tinybert_jax.data.augmentation.neighbours import read_vectors
from tinybert_jax.data.reader import read_checked
from tinybert_jax.data.rows import read_rows
from tinybert_jax.data.suspects import counts_rows, has_csv_quotes
from tinybert_jax.settings.sources import DataSource, TextForm
from tinybert_jax.settings.tasks import get_task

cells = st.text(st.characters(codec="utf-8", exclude_characters="\0\t\r\n"), min_size=1).filter(str.strip)
labels = cells.map(str.strip)


def as_table(rows: list[tuple[str, str]], kind: str, end: str, last: str, mark: str) -> bytes:
    if kind == ".jsonl":
        lines = [json.dumps({"text": text, "n": 1, "label": label}, ensure_ascii=end == "\n") for text, label in rows]
        return (mark + end.join(lines) + last).encode()
    cells = [("text", "n", "label"), *((text, "1", label) for text, label in rows)]
    if kind == ".tsv":
        return (mark + end.join("\t".join(row) for row in cells) + last).encode()
    csv.writer(written := io.StringIO(newline=""), lineterminator=end).writerows(cells)
    return (mark + written.getvalue().removesuffix(end) + last).encode()


@law(150)
@given(
    rows=st.lists(st.tuples(cells, labels), min_size=1, max_size=5),
    kind=st.sampled_from([".tsv", ".csv", ".jsonl"]),
    end=st.sampled_from(["\n", "\r\n"]),
    last=st.sampled_from(["", "\n", "\r\n", "\n\n"]),
    mark=st.sampled_from(["", "\ufeff"]),
)
@example([("x" * 200_000, "a")], ".csv", "\n", "\n", "")  # more than Python's limit for a field
@example([("two\nlines", "a")], ".csv", "\n", "", "")
def test_rows_are_read_as_they_are_written(rows, kind, end, last, mark):
    content = as_table(rows, kind, end, last, mark)
    assume(not counts_rows([text for text, _ in rows]))
    assume(kind != ".tsv" or not has_csv_quotes(content.decode("utf-8-sig")))  # they are read as pandas writes them
    raw = read_checked(Path(f"x{kind}"), content, TextForm(("text",)), "label", True)
    assert (raw.texts, raw.labels) == ([(text,) for text, _ in rows], [label for _, label in rows])


ROWS = [("good, very", "1"), ('the "best" \u00e4', "0"), ("no\u2028thing", "-1.5"), ("a b", "1")]
TABLES = {kind: as_table(ROWS, kind, "\n", "\n", "") for kind in (".tsv", ".csv", ".jsonl")}


@law(300)
@given(st.data(), st.sampled_from(list(TABLES)), st.booleans())
def test_damaged_rows_are_read_or_refused(data, kind, needs_label):
    content = data.draw(damaged(TABLES[kind]))
    path = Path(f"rows{kind}")
    raw = read_or_refused(lambda: read_checked(path, content, TextForm(("text",)), "label", needs_label), path)
    if raw is not None:
        assert all(text.strip() and "\0" not in text and text.encode() for (text,) in raw.texts)
        assert not needs_label or (raw.labels is not None and all(raw.labels))
        assert raw.lines == sorted(set(raw.lines))
        lines = content.decode("utf-8-sig").split("\n")
        for (text,), line in zip(raw.texts, raw.lines, strict=True):
            if kind == ".jsonl":
                assert json.loads(lines[line - 1])["text"] == text
            else:
                there = "\n".join(lines[line - 1 :])
                assert text in there or text.replace('"', '""') in there


odd_labels = st.sampled_from(["1", "0", "-0", "1e3", "nan", "inf", "1e999", "1_0", "\u0663", "9" * 5000, "x"]) | labels


@law(20)
@given(st.lists(odd_labels, min_size=2, max_size=4), st.sampled_from(["classification", "regression"]))
@example(["9" * 5000, "1"], "classification")  # more digits than Python reads as a number
def test_labels_are_classes_or_numbers_or_refused(tmp_path, written, name):
    path = put(tmp_path / "labels.tsv", as_table([("some text", label) for label in written], ".tsv", "\n", "\n", ""))
    rows = read_or_refused(lambda: read_rows(get_task(name), DataSource(train=str(path)), "train"), path)
    if rows is not None and name == "regression":
        assert rows.labels.tolist() == [np.float32(label) for label in written]
    elif rows is not None:
        assert [rows.label_names[i] for i in rows.labels] == written


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
words = st.text(st.characters(codec="utf-8", exclude_characters="\t\n\v\f\r \ufeff"), min_size=1, max_size=8)


@law(150)
@given(st.data(), st.integers(2, 4), st.lists(words, min_size=1, max_size=6, unique=True), st.booleans())
def test_vectors_are_read_as_they_are_written_at_length_1(tmp_path, data, width, names, header):
    vectors = [data.draw(st.lists(finite, min_size=width, max_size=width).filter(any)) for _ in names]
    lines = [f"{len(names)} {width}"] if header else []
    lines += [" ".join([name, *map(repr, vector)]) for name, vector in zip(names, vectors, strict=True)]
    mark, end = data.draw(st.sampled_from(["", "\ufeff"])), data.draw(st.sampled_from(["\n", "\r\n", " \n"]))
    path = put(tmp_path / "written.txt", mark + end.join(lines) + end)
    read, unit = read_vectors(path)
    exact = np.array(vectors) / np.max(np.abs(vectors), axis=1, keepdims=True)
    assert read == names
    np.testing.assert_allclose(unit, exact / np.linalg.norm(exact, axis=1, keepdims=True), rtol=1e-5, atol=1e-7)


VECTORS = b"3 3\ngood 1 0 0.5\nfine 0 1e-3 0\n. . 1 1 1\n"


@law(300)
@given(damaged(VECTORS) | damaged(VECTORS[4:]) | st.binary(max_size=64))
@example(b"2 2\na 3e38 3e38\nb 1e-30 0\n")  # whose squares float32 does not hold
@example(b"3 " + b"9" * 5000 + b"\na 1 2\n")
def test_damaged_vectors_are_read_or_refused(tmp_path, content):
    path = put(tmp_path / "vectors.txt", content)
    table = read_or_refused(lambda: read_vectors(path), path)
    if table is not None:
        names, vectors = table
        assert len(set(names)) == len(names) == len(vectors) > 0
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
