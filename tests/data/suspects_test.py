"""Files that are not what their names say are read as they were written, or refused for what they are."""

from __future__ import annotations

import csv
import io
import json
import tracemalloc
from pathlib import Path

import pytest

from tinybert_jax.data.corpus.text import units
from tinybert_jax.data.reader import read_checked
from tinybert_jax.data.rows import Rows, read_rows
from tinybert_jax.data.suspects import ONE_LABEL, has_csv_quotes, no_column, several_labels
from tinybert_jax.errors import InputError
from tinybert_jax.settings.sources import DataSource, TextForm
from tinybert_jax.settings.tasks import get_task

ROWS = [('he said "great" film', "pos"), ("bad movie", "neg"), ('"so, so"', "neg")]
JSON_LINES = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in ROWS)


def read(
    tmp_path: Path, content: str, name: str = "train.tsv", task: str = "classification", **columns: object
) -> Rows:
    (tmp_path / name).write_bytes(content.encode())
    return read_rows(get_task(task), DataSource(train=str(tmp_path / name), **columns), "train")


def tsv(rows: list[tuple[str, str]], quoting: int, end: str = "\n", index: bool = False) -> str:
    """A table as `pandas.DataFrame.to_csv(sep="\\t")` writes it."""
    table = [("text", "label"), *rows]
    if index:
        table = [("" if not number else str(number - 1), *row) for number, row in enumerate(table)]
    csv.writer(written := io.StringIO(newline=""), delimiter="\t", quoting=quoting, lineterminator=end).writerows(
        table
    )
    return written.getvalue()


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize(
    "rows", [ROWS, [*ROWS, ("a tab\t, and\na line", "neg")], [("a\tb", "x"), ("c", "y")]], ids=["", "lines", "tab"]
)
def test_a_tsv_of_pandas_is_read_as_it_was_written(
    rows: list, quoting: int, index: bool, end: str, mark: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    read_back = read(tmp_path, mark + tsv(rows, quoting, end, index))
    assert read_back.texts == [(text,) for text, _ in rows]
    assert [read_back.label_names[i] for i in read_back.labels_or_zeros] == [label for _, label in rows]
    note = f"note: {tmp_path}/train.tsv: its cells are quoted, as pandas does it; the quotes are no part of them\n"
    assert capsys.readouterr().err == note


@pytest.mark.parametrize(
    "content",
    [
        'text\tlabel\n"Good!"\tx\nbad\ty\n',  # sentences in quotes
        'text\tlabel\n"a ""b"""\tx\nsay "c\ty\n',  # a mark within a cell without quotes
        'text\tlabel\n"hello\tx\nfoo bar"\ty\n',  # a quotation over two rows
    ],
)
def test_quotation_marks_of_texts_stay(content: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    lines = [line.split("\t")[0] for line in content.splitlines()[1:]]
    assert read(tmp_path, content).texts == [(text,) for text in lines]
    assert capsys.readouterr().err == ""


def test_rows_that_are_read_with_quotes_have_another_fingerprint_than_without(tmp_path: Path, monkeypatch) -> None:
    """Tokens that an earlier version kept hold the quotes."""
    content = tsv(ROWS, csv.QUOTE_MINIMAL)
    with_quotes = read(tmp_path, content).fingerprint
    monkeypatch.setattr("tinybert_jax.data.rows._quoted", lambda path, data: [])
    assert read(tmp_path, content).fingerprint != with_quotes


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "train.csv",
            "text, label\na,x\n",
            "no column 'label'; the header has ' label', with a space: remove it; the",
        ),
        (
            "train.csv",
            "a very fine film for all,x\nb,y\n",
            "does the file lack the line with the names of its columns?",
        ),
        ("train.txt", "a\nb\n", "give one of .tsv, .csv, .jsonl, .json; texts without labels are --unlabelled"),
    ],
)
def test_a_refusal_says_what_may_be_wrong(name: str, content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        read(tmp_path, content, name)
    assert message in str(error.value)


def test_a_csv_may_have_semicolons(tmp_path: Path) -> None:
    rows = read(tmp_path, 'text;label\n"well, a; b";x\n"two\nlines";y\n', "train.csv")
    assert rows.texts == [("well, a; b",), ("two\nlines",)]
    assert rows.label_names == ("x", "y")
    commas = read(tmp_path, "text,label\na; b,x;y\nc,z\n", "train.csv")
    assert commas.label_names == ("x;y", "z")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.tsv", JSON_LINES, "1: holds JSON, and not a table: write one JSON object a line, and name it .jsonl"),
        ("train.csv", json.dumps([{"text": "a", "label": "b"}], indent=1), "1: holds JSON, and not a table"),
        ("train.csv", "text|label\na|x\nb|y\n", "1: bars separate the columns ('text|label'): a .tsv has tabs"),
        ("train.tsv", "text;label\na;x\nb;y\n", "1: semicolons separate the columns"),
        ("train.csv", "text\tlabel\na\tx\nb\ty\n", "1: tabs separate the columns"),
        ("train.tsv", "text,label\na,x\nb,y\n", "1: commas separate the columns"),
    ],
)
def test_a_file_of_another_kind_is_refused_for_what_it_is(
    name: str, content: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as error:
        read(tmp_path, content, name)
    assert str(error.value).startswith(f"{tmp_path}/{name}:{message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (JSON_LINES, "1: holds JSON, and not a text a line: write one JSON object a line, and name it .jsonl"),
        ("0\tgood\n1\tbad\n2\tfine\n", "1: each line begins with its number, as an index: remove the numbers"),
    ],
)
def test_a_txt_of_texts_is_no_json_and_has_no_index(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "dev.csv").write_text("text,label\na,x\nb,y\n")
    (tmp_path / "more.txt").write_text(content)
    source = DataSource(dev=str(tmp_path / "dev.csv"), unlabelled=(str(tmp_path / "more.txt"),))
    with pytest.raises(InputError) as error:
        read_rows(get_task("classification"), source, "train")
    assert str(error.value).startswith(f"{tmp_path}/more.txt:{message}")


def test_a_corpus_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "wiki.txt").write_text(JSON_LINES)
    with pytest.raises(InputError, match=r"wiki.txt:1: holds JSON, and not text: give the text alone"):
        list(units([str(tmp_path / "wiki.txt")], one_document_per_line=True))


def test_an_index_is_no_text_and_is_noted_as_label(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    content = "Unnamed: 0,text,label\n" + "".join(f"{i},a text,{i}\n" for i in range(6))
    with pytest.raises(
        InputError, match="the texts in 'Unnamed: 0' count the rows, as an index: name other --text-co"
    ):
        read(tmp_path, content, "train.csv", text_columns=("Unnamed: 0",))
    assert len(read(tmp_path, content, "train.csv", "regression").texts) == 6
    assert capsys.readouterr().err == (
        f"note: {tmp_path}/train.csv: the labels in 'label' count the rows, as an index: is it the --label-column?\n"
    )


@pytest.mark.parametrize(
    ("labels", "several"),
    [
        (["a;b", "a", "b"], "a;b"),
        (["x", "a|b", "b|c", "a | c"], "a|b"),
        (["good, cheap", "cheap", "good"], "good, cheap"),
        (["['a', 'b']", "['a']"], "['a', 'b']"),
        (['["a"]', "[]"], '["a"]'),
        (["1 0 1", "0 0 1"], "1 0 1"),
        (["0,1", "1,0"], "0,1"),
        (["[1. 0.]", "[0. 1.]"], "[1. 0.]"),
    ],
)
def test_several_labels_in_a_row_are_refused(labels: list[str], several: str, tmp_path: Path) -> None:
    content = "text\tlabel\n" + "".join(f"a text\t{label}\n" for label in labels)
    with pytest.raises(InputError) as error:
        read(tmp_path, content)
    message = f"{tmp_path}/train.tsv: the label {several!r} is several labels: {ONE_LABEL}; where that"
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "labels",
    [["Sci/Tech", "World"], ["[POS]", "[NEG]"], ["Toys, games", "Books"], ["very good", "good", "very"], ["1", "0"]],
)
def test_a_label_of_several_words_is_one(labels: list[str]) -> None:
    assert several_labels(labels) == ""


def test_a_label_that_may_be_several_is_noted_and_one_of_known_labels_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert read(tmp_path, "text\tlabel\nfine\ta;b\nbad\tc\n").label_names == ("a;b", "c")
    assert capsys.readouterr().err == (
        f"note: {tmp_path}/train.tsv: 'a;b' is read as one label, because {ONE_LABEL}\n"
    )
    source = DataSource(train=str(tmp_path / "train.tsv"))
    with pytest.raises(
        InputError, match=r"train.tsv:2: the label 'a;b' is several of 'a', 'b', 'c': each row needs one"
    ):
        read_rows(get_task("classification"), source, "train", ("a", "b", "c"))


@pytest.mark.parametrize("row", [[1, 0, 1], [1.0, 0.0, 0.0], [True, False, False]])
def test_a_zero_or_one_for_each_class_is_no_set_of_names(row: list[float], tmp_path: Path) -> None:
    content = "".join(json.dumps({"text": "a", "labels": labels}) + "\n" for labels in (row, row[::-1]))
    with pytest.raises(InputError, match=r"the labels in 'labels' are zeros and ones, one for each class: write the"):
        read(tmp_path, content, "train.jsonl", "multi_label")


@pytest.mark.parametrize("task", ["classification", "multi_label"])
def test_a_column_for_each_class_is_told_with_what_to_do(task: str, tmp_path: Path) -> None:
    content = "id,text,toxic,insult\nx1,a,1,0\nx2,b,0,1\nx3,c,1,1\n"
    message = r"train\.csv:1: no column 'labels?', but 'toxic', 'insult' hold 0 and 1, as one column for each class"
    with pytest.raises(InputError, match=message):
        read(tmp_path, content, "train.csv", task)


def test_labels_that_were_not_parted_are_told_with_the_option_that_parts_them(tmp_path: Path) -> None:
    for label in ("\"['x', 'y']\"", "x;y"):
        content = f"text,labels\na,{label}\nb,x\nc,y\n"
        with pytest.raises(InputError, match=r" is read as one label: name what stands between .* --label-delimiter"):
            read(tmp_path, content, "train.csv", "multi_label", label_delimiter="|")


@pytest.mark.parametrize(
    ("labels", "note"),
    [
        (["pos", "nan", "neg"], "'nan' is read as a class: if it stands for no label, remove its rows"),
        (["1", "\\N", "0"], "'\\\\N' is read as a class: if it stands for no label, remove its rows"),
        (["Pos", "neg", "pos"], "'Pos' and 'pos' are read as different classes: if they are one, write them alike"),
        (["1", "1.0", "0"], "'1' and '1.0' are read as different classes: if they are one, write them alike"),
    ],
)
def test_an_odd_class_is_noted(labels: list[str], note: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert len(read(tmp_path, "text\tlabel\n" + "".join(f"a\t{label}\n" for label in labels)).label_names) == 3
    assert capsys.readouterr().err == f"note: {tmp_path}/train.tsv: {note}\n"


def test_an_open_quotation_mark_needs_no_memory_for_what_follows_it() -> None:
    text = 'text\tlabel\n"an open mark\tx\n' + "a line of a file\ty\n" * 50_000
    tracemalloc.start()
    assert not has_csv_quotes(text)
    assert tracemalloc.get_traced_memory()[1] < 4 * len(text)
    tracemalloc.stop()


@pytest.mark.parametrize("label", ['""', "[]", '[""]'])
def test_an_empty_label_in_json_is_no_class(label: str, tmp_path: Path) -> None:
    lines = [
        '{"text": "a", "labels": ["x", "y"]}',
        '{"text": "b", "labels": "x"}',
        f'{{"text": "c", "labels": {label}}}',
    ]
    rows = read(tmp_path, "\n".join(lines), "train.jsonl", "multi_label")
    assert rows.label_names == ("x", "y")
    assert rows.labels_or_zeros.tolist() == [[1, 1], [1, 0], [0, 0]]


@pytest.mark.parametrize(
    ("second", "labels"), [('{"text": "b", "label": null}', ["x", ""]), ('{"text": "b", "label": "y"}', ["x", "y"])]
)
def test_a_label_of_a_test_row_may_be_null(second: str, labels: list[str], tmp_path: Path) -> None:
    content = '{"text": "a", "label": "x"}\n' + second
    raw = read_checked(Path("test.jsonl"), content.encode(), TextForm(("text",)), "label", needs_label=False)
    assert raw.labels == labels


def test_labels_of_some_rows_of_a_test_file_are_refused() -> None:
    for content in ('{"text": "a"}\n{"text": "b", "label": "x"}', '{"text": "b", "label": "x"}\n{"text": "a"}'):
        with pytest.raises(InputError, match=r"test\.jsonl:2: only some rows have the label 'label': give it to all"):
            read_checked(Path("test.jsonl"), content.encode(), TextForm(("text",)), "label", needs_label=False)


@pytest.mark.parametrize(
    "content",
    [
        json.dumps([{"text": "a", "label": "x"}]),
        json.dumps([{"text": "a", "label": "x"}], indent=2),
        json.dumps({"text": "a", "label": "x"}, indent=2),
        json.dumps({"text": {"0": "a", "1": "b"}, "label": {"0": "x", "1": "y"}}),
    ],
    ids=["list", "list of many lines", "object of many lines", "columns"],
)
def test_json_that_is_no_json_lines_is_refused_with_what_writes_them(content: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rows\.json:1: is one value of JSON: write one object a line, as pandas"):
        read(tmp_path, content, "rows.json")


def test_a_header_without_a_name_for_the_index_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"2: extra columns: 3 instead of 2 .*if all rows are so, the header lacks a"):
        read(tmp_path, "text,label\n1,a,x\n2,b,y\n", "train.csv")


def test_no_file_of_one_kind_of_cell_is_quoted() -> None:
    assert not has_csv_quotes("text\tlabel\na\tb\n")


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("coment", "no column 'coment'; did you mean comment?; the columns are 'q', 'comment'"),
        (
            "q,comment",
            "no column 'q,comment'; did you mean q comment, with a space between the names?; the columns are",
        ),
        ("label", "no column 'label'; the columns are 'q', 'comment'"),
    ],
)
def test_a_message_about_a_missing_column_names_a_similar_one(column: str, message: str) -> None:
    assert no_column(column, ["q", "comment"]).startswith(message)
