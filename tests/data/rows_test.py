"""Files become checked rows; whatever is wrong is named by file and line. `tfds_test` has prepared TFDS sets."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tinybert_jax.data.rows import read_rows
from tinybert_jax.errors import InputError
from tinybert_jax.settings.sources import DataSource
from tinybert_jax.settings.tasks import get_task

CLASSES = get_task("classification")
NUMBERS = get_task("regression")
GOOD = b"text\tlabel\ngood\tb\nbad\ta\n"


def write(tmp_path: Path, name: str, content: bytes | str) -> str:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def read(tmp_path: Path, content: bytes | str, name: str = "train.tsv", task=CLASSES, split="train", **columns):
    """The rows of one file that is the training (or dev) file."""
    source = DataSource(**{split: write(tmp_path, name, content)}, **columns)
    return read_rows(task, source, split)


def test_tsv_has_no_quotes_and_csv_has(tmp_path):
    tsv = read(tmp_path, 'text\tlabel\nsay "no\tx\nsaid ""so"" twice\ty\n')
    assert tsv.texts == [('say "no',), ('said ""so"" twice',)]
    csv = read(tmp_path, 'label,text\nx,"two\nlines, ""quoted"""\ny,plain\n', "train.csv")
    assert csv.texts == [('two\nlines, "quoted"',), ("plain",)]
    assert csv.labels.tolist() == [0, 1]


def test_a_file_of_one_sentence_in_quotes_keeps_them(tmp_path):
    assert read(tmp_path, 'text\tlabel\n"quoted"\tx\n"\ty\n').texts == [('"quoted"',), ('"',)]


@pytest.mark.parametrize("name", ["train.jsonl", "train.json"])
def test_json_lines_are_read_with_string_and_number_labels(tmp_path, name):
    content = '{"label": 10, "text": "a\\tb\\n"}\n{"text": "\\u00e4 \\u2028", "label": "9", "more": [1]}\n'
    rows = read(tmp_path, content, name)
    assert rows.texts == [("a\tb\n",), ("ä \u2028",)]
    assert (rows.label_names, rows.labels.tolist()) == (("9", "10"), [1, 0])


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + GOOD,
        GOOD.replace(b"\n", b"\r\n"),
        GOOD + b"\n\r\n\n",
        GOOD.rstrip(b"\n"),
        b"id\ttext\tlabel\n1\tgood\tb\n2\tbad\ta\n",
    ],
    ids=["byte order mark", "CRLF", "blank lines at the end", "no last newline", "other columns"],
)
def test_harmless_differences_between_files_change_no_row(tmp_path, content):
    rows = read(tmp_path, content)
    assert rows.texts == [("good",), ("bad",)]
    assert (rows.label_names, rows.labels.tolist(), rows.labels.dtype) == (("a", "b"), [1, 0], np.int32)


def test_a_text_is_as_long_as_it_likes(tmp_path):
    """Python's csv module stops at 131,072 characters."""
    assert read(tmp_path, f"text,label\n{'a' * 200_000},x\nb,y\n", "train.csv").texts[0] == ("a" * 200_000,)


def test_unicode_line_breaks_inside_a_text_do_not_split_the_row(tmp_path):
    assert read(tmp_path, "text\tlabel\na\u2028b\x85c\x0bd\tx\ne\ty\n").texts[0] == ("a\u2028b\x85c\x0bd",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text\tlabel\na\tx\nb\n", "train.tsv:3: short row: 1 instead of 2 (text, label): complete or remove"),
        ("text\tlabel\na\tx\tz\nb\ty\n", "train.tsv:2: extra columns: 3 instead of 2 (text, label): repair or remove"),
        ("text\tlabel\na\tx\n\nb\ty\n", "train.tsv:3: the line is blank: remove it"),
        ("text\tlabel\na\tx\nb\t \n", "train.tsv:3: the label in 'label' is empty: fill it or remove the row"),
        ("text\tlabel\na\tx\n  \ty\n", "train.tsv:3: the text in 'text' is empty: fill it or remove the row"),
        ("text\tlabel\na\tx\nb\tx\n", "train.tsv: all rows have the label 'x': classification needs at least two"),
        ("", "train.tsv:1: the file is empty: give one with rows"),
        ("\n\n", "train.tsv:1: the file is empty"),
        ("text\tlabel\n\n", "train.tsv:1: there is a header and no row after it: give a file with rows"),
        (b"text\tlabel\na\tx\nb\xe9\ty\n", "train.tsv:3: byte 0xe9 is not UTF-8: save the file as UTF-8"),
        (b"text\tlabel\na\0\tx\nb\ty\n", "train.tsv:2: a NUL byte: remove it"),
        (b"text\tlabel\na\tx\nb\rc\ty\n", "train.tsv:3: a lone carriage return: end lines with \\n"),
        ("sentence\tlabel\na\tx\n", "train.tsv:1: no column 'text'; the columns are 'sentence', 'label': name yours"),
        ("text\tclass\na\tx\n", "train.tsv:1: no column 'label'; the columns are 'text', 'class': name yours with --"),
        ("text\tlabel\ttext\na\tx\tb\n", "train.tsv:1: the column 'text' occurs 2 times: rename one"),
        ("text\tlabel\tb\u2028c\na\tx\n", "train.tsv:2: short row: 2 instead of 3 (text, label, b\\u2028c): complete"),
        (
            "text\tlabel\n" + "".join(f"a\t{i}\n" for i in range(30)),
            "train.tsv: 30 different labels in 30 rows: name another --label-column, or use --task regression",
        ),
    ],
)
def test_a_bad_tsv_is_refused_by_file_and_line(tmp_path, content, message):
    with pytest.raises(InputError) as error:
        read(tmp_path, content)
    assert str(error.value).startswith(f"{tmp_path}/{message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('text,label\n"a\nb",x\nc\n', "train.csv:4: short row: 1 instead of 2"),
        ("text,label\na,x,z\n", "train.csv:2: extra columns: 3 instead of 2"),
        ('text,label\na,x\n"b"c,y\n', "train.csv:3: ',' expected after '\"': repair the quotes of this row"),
        ('text,label\na,x\n"b,y\nc,z\n', "train.csv:3: unexpected end of data: repair the quotes of this row"),
        ("text,label\na,x\n\nb,y\n", "train.csv:3: the line is blank"),
    ],
)
def test_a_bad_csv_is_refused_by_the_line_where_its_row_starts(tmp_path, content, message):
    with pytest.raises(InputError) as error:
        read(tmp_path, content, "train.csv")
    assert str(error.value).startswith(f"{tmp_path}/{message}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "b"', "not JSON ("),
        ("[" * 100_000, "not JSON ("),
        ('["b", "y"]', "a list instead of an object: write one JSON object a line"),
        ('{"text": 3, "label": "y"}', "'text' is a number instead of a string: write a string"),
        ('{"text": "b", "label": null}', "'label' is null instead of a string or number: write one"),
        (
            '{"text": "b", "label": ["y"]}',
            "'label' is a list instead of a string or number: each row needs one label",
        ),
        ('{"text": "b"}', "no key 'label'; the keys are 'text': name yours with --text-columns and --label-column"),
        ('{"text": "b", "label": ""}', "the label in 'label' is empty"),
        ('{"text": "\\ud800", "label": "y"}', "'text' holds a NUL or half a surrogate pair: remove it"),
        ('{"text": "\\u0000", "label": "y"}', "'text' holds a NUL or half a surrogate pair: remove it"),
        ('\n{"text": "b", "label": "y"}', "the line is blank: remove it"),
        ('{"text": "b", "label": NaN}', "'label' is nan, not a finite number: correct or remove the row"),
        ('{"text": "b", "label": 1e999}', "'label' is inf, not a finite number: correct or remove the row"),
        (
            '{"text": "b", "label": "y", "text": "c"}',
            "not JSON (the key 'text' occurs twice): each line must be one",
        ),
    ],
)
def test_a_bad_json_line_is_refused_by_file_and_line(tmp_path, line, message):
    with pytest.raises(InputError) as error:
        read(tmp_path, '{"text": "a", "label": "x"}\n' + line + "\n", "train.jsonl")
    assert str(error.value).startswith(f"{tmp_path}/train.jsonl:2: {message}")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("high", "label 'high' is not a number: regression needs one"),
        ("1_0", "label '1_0' is not a number"),
        ("nan", "label 'nan' is not a finite number: correct or remove the row"),
        ("-inf", "label '-inf' is not a finite number"),
        ("1e300", "label '1e300' is not a finite number"),
    ],
)
def test_a_regression_label_must_be_a_finite_number(tmp_path, label, message):
    with pytest.raises(InputError) as error:
        read(tmp_path, f"text\tlabel\na\t1.5\nb\t{label}\n", task=NUMBERS)
    assert str(error.value).startswith(f"{tmp_path}/train.tsv:3: {message}")


def test_regression_labels_are_float32_without_names(tmp_path):
    rows = read(tmp_path, "text\tlabel\na\t1.5\nb\t-2\n", task=NUMBERS)
    assert (rows.labels.tolist(), rows.labels.dtype, rows.label_names) == ([1.5, -2.0], np.float32, ())


def test_given_labels_are_authoritative(tmp_path):
    source = DataSource(dev=write(tmp_path, "dev.tsv", GOOD))
    assert read_rows(CLASSES, source, "dev", ("c", "b", "a")).labels.tolist() == [1, 2]
    with pytest.raises(InputError) as error:
        read_rows(CLASSES, source, "dev", ("a", "c"))
    assert str(error.value) == (
        f"{tmp_path}/dev.tsv:2: unknown label 'b'; the model or training file has 'a', 'c': correct it in"
        " the file, or in id2label of its config.json, or take a model that has the label"
    )


@pytest.mark.parametrize(
    ("labels", "example"),
    [
        (("LABEL_0", "LABEL_1", "LABEL_2"), '{"0": "a", "1": "b", "2": "c"}'),
        (("LABEL_0", "LABEL_1"), '{"0": "...", "1": "..."}'),
    ],
)
def test_of_a_model_whose_classes_were_never_named_the_remedy_is_to_name_them(tmp_path, labels, example):
    source = DataSource(dev=write(tmp_path, "dev.tsv", "text\tlabel\nq\tb\nr\ta\ns\tc\n"))
    with pytest.raises(InputError) as error:
        read_rows(CLASSES, source, "dev", labels)
    assert str(error.value) == (
        f"{tmp_path}/dev.tsv:2: unknown label 'b'; the model or training file has {len(labels)} classes that were"
        " never named: write their names into its config.json, in the order of its training, such as"
        f' "id2label": {example}; to see the order, let tinybert predict a few rows whose classes you know'
    )


def test_a_label_in_another_case_is_the_models_if_it_is_no_other(tmp_path):
    source = DataSource(dev=write(tmp_path, "dev.tsv", "text\tlabel\na\tpositive\nb\tNegative\n"))
    assert read_rows(CLASSES, source, "dev", ("NEGATIVE", "POSITIVE")).labels.tolist() == [1, 0]
    with pytest.raises(InputError, match="unknown label 'positive'"):
        read_rows(CLASSES, source, "dev", ("negative", "Positive", "POSITIVE"))


def test_numbers_in_the_place_of_names_are_told_what_they_may_be(tmp_path):
    source = DataSource(dev=write(tmp_path, "dev.tsv", "text\tlabel\nq\t1\nr\t0\n"))
    with pytest.raises(InputError, match="in their place; if they are the model's numbers, 'bad' for 0, 'good' for 1"):
        read_rows(CLASSES, source, "dev", ("bad", "good"))


def test_labels_of_the_dev_file_are_those_of_the_training_file(tmp_path):
    train = write(tmp_path, "train.tsv", GOOD)
    rows = read_rows(CLASSES, DataSource(train=train, dev=write(tmp_path, "dev.csv", "text,label\nq,b\n")), "dev")
    assert (rows.label_names, rows.labels.tolist()) == (("a", "b"), [1])
    source = DataSource(train=train, dev=write(tmp_path, "dev2.csv", "text,label\nq,z\n"))
    with pytest.raises(InputError, match=rf"dev2.csv:2: unknown label 'z'; {train} has 'a', 'b': correct it in the"):
        read_rows(CLASSES, source, "dev")


def test_columns_of_the_users_own_are_read(tmp_path):
    content = "a\tb\tc\nleft\tright\tyes\nl\tr\tno\n"
    rows = read(tmp_path, content, text_columns=("b", "a"), label_column="c")
    assert (rows.texts[0], rows.label_names) == (("right", "left"), ("no", "yes"))


GLUE_FILES = {
    "cola": ("gj04\t1\t\tOne.\ngj04\t0\t*\tTwo.\n", ("One.",), [1, 0]),
    "sst2": ("sentence\tlabel\nfine \t1\nbad \t0\n", ("fine ",), [1, 0]),
    "mrpc": ('\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1\t2\tA "b\tC\n', ('A "b', "C"), [0]),
    "stsb": ("index\tsentence1\tsentence2\tscore\n0\tA\tB\t3.8\n", ("A", "B"), [np.float32(3.8)]),
    "qqp": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\tA?\tB?\t1\n", ("A?", "B?"), [1]),
    "mnli": ("index\tsentence1\tsentence2\tlabel1\tgold_label\n0\tA\tB\tneutral\tneutral\n", ("A", "B"), [1]),
    "qnli": ("index\tquestion\tsentence\tlabel\n0\tA?\tB.\tnot_entailment\n", ("A?", "B."), [1]),
    "rte": ("index\tsentence1\tsentence2\tlabel\n0\tA\tB\tentailment\n", ("A", "B"), [0]),
    "wnli": ("index\tsentence1\tsentence2\tlabel\n0\tA\tB\t1\n", ("A", "B"), [1]),
}


@pytest.mark.parametrize("name", GLUE_FILES)
def test_every_glue_task_reads_its_official_layout(tmp_path, name):
    content, first, labels = GLUE_FILES[name]
    task = get_task(name)
    for split in ("train", "dev"):
        write(tmp_path, task.file(split), content)
    for split in ("train", "dev"):
        rows = read_rows(task, DataSource(data=str(tmp_path)), split)
        assert (rows.texts[0], rows.labels.tolist(), rows.label_names) == (first, labels, task.labels)


QQP = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"


def test_the_damage_in_qqps_official_files_is_no_error(tmp_path, capsys):
    """Its train.tsv has rows that end after the third column, and questions that are empty."""
    write(tmp_path, "train.tsv", QQP + "1\t2\t3\tA?\tB?\t1\n4\t5\t6\n7\t8\t9\tC?\t\t0\n")
    rows = read_rows(get_task("qqp"), DataSource(data=str(tmp_path)), "train")
    assert (rows.texts, rows.labels.tolist(), list(rows.lines)) == ([("A?", "B?"), ("C?", "")], [1, 0], [2, 4])
    assert capsys.readouterr().err == f"note: {tmp_path}/train.tsv: 1 row is cut short and left out, first at line 3\n"


@pytest.mark.parametrize(
    ("task", "name", "content", "message"),
    [
        ("qqp", "train.tsv", "1\t2\t3\t \t\t1\n", "2: the text in 'question1' is empty"),
        ("qqp", "train.tsv", "1\t2\t3\tA?\tB?\t1\t\n", "2: extra columns"),
        ("qqp", "test.tsv", "1\t2\t3\n", "2: short row"),  # its predictions must have every row
        ("classification", "train.tsv", "1\t2\t3\n", "2: short row"),
    ],
)
def test_no_other_damage_is_passed_over(tmp_path, task, name, content, message):
    write(tmp_path, name, QQP + content)
    columns = {"text_columns": ("question1", "question2"), "label_column": "is_duplicate"}
    with pytest.raises(InputError, match=f"{name}:{message}"):
        read_rows(get_task(task), DataSource(data=str(tmp_path), **columns), name.removesuffix(".tsv"))


def test_a_row_of_a_headerless_file_is_counted_from_its_first_line(tmp_path):
    write(tmp_path, "train.tsv", "gj04\t1\t\tOne.\ngj04\t2\t\tTwo.\n")
    with pytest.raises(
        InputError,
        match=r"train.tsv:2: unknown label '2'; task 'cola' has 'unacceptable', 'acceptable'",
    ):
        read_rows(get_task("cola"), DataSource(data=str(tmp_path)), "train")


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        ("index\tsentence\n0\tfine\n1\tbad\n", None),
        ("sentence\tlabel\nfine\t\nbad\t\n", None),
        ("sentence\tlabel\nfine\t-1\nbad\t-1\n", None),
        ("sentence\tlabel\nfine\t1\nbad\t0\n", [1, 0]),
    ],
)
def test_a_test_split_may_come_without_labels(tmp_path, content, labels):
    write(tmp_path, "test.tsv", content)
    rows = read_rows(get_task("sst2"), DataSource(data=str(tmp_path)), "test")
    assert rows.texts == [("fine",), ("bad",)]
    assert (rows.labels if rows.labels is None else rows.labels.tolist()) == labels


def test_a_test_file_without_labels_is_no_training_file(tmp_path):
    for name in ("test.tsv", "train.tsv"):
        write(tmp_path, name, "sentence\nfine\n")
    source = DataSource(data=str(tmp_path))
    assert read_rows(get_task("sst2"), source, "test").labels is None
    with pytest.raises(InputError, match=r"train.tsv:1: no column 'label'; the columns are 'sentence'"):
        read_rows(get_task("sst2"), source, "train")


@pytest.mark.parametrize(
    ("source", "split", "message"),
    [
        ({"data": "no"}, "train", "no: no such directory: --data takes one with train.tsv and dev.tsv"),
        (
            {"data": "d"},
            "train",
            "d/train.tsv: no such file; in the directory: other.txt. Task 'classification' needs",
        ),
        ({"train": "no.tsv"}, "train", "no.tsv: no such file: correct --train"),
        ({"train": "d"}, "train", "d: a directory, not a file: correct --train"),
        (
            {"train": "d/other.txt"},
            "train",
            "d/other.txt: unknown kind of file '.txt': give one of .tsv, .csv, .jsonl",
        ),
        ({"train": "d/other.txt"}, "dev", "no dev file is given: add --dev FILE"),
        ({"dev": "d/other.txt"}, "train", "no train file is given: add --train FILE"),
        ({"dev": "d/other.txt"}, "test", "no test file is given: add --test FILE"),
    ],
)
def test_a_missing_file_is_named(tmp_path, monkeypatch, source, split, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "d/other.txt", GOOD)
    with pytest.raises(InputError) as error:
        read_rows(CLASSES, DataSource(**source), split)
    assert str(error.value).startswith(message)


def test_another_content_or_column_has_another_fingerprint(tmp_path):
    content = "text\tmore\tlabel\na\tb\tx\nc\td\ty\n"
    prints = [
        read(tmp_path, content).fingerprint,
        read(tmp_path, content.replace("c", "C")).fingerprint,
        read(tmp_path, content, text_columns=("more",)).fingerprint,
        read(tmp_path, content, text_columns=("text", "more")).fingerprint,
    ]
    assert len(set(prints)) == 4


@pytest.mark.parametrize(
    ("task", "name", "content", "fingerprint"),
    [
        (
            "classification",
            "train.tsv",
            GOOD.decode(),
            "7f07521b6b21d741b29b37f0ba24a09003f6c039abd741b8e29ded09b2a75492",
        ),
        (
            "classification",
            "train.csv",
            "text,label\na,x\nb,y\n",
            "26feb4185cc2a91c50ec3f08ff37686723cae480b1396ec5e06e9d1858a398d5",
        ),
        (
            "classification",
            "train.jsonl",
            '{"text": "a", "label": 1}\n{"text": "b", "label": 2}\n',
            "a825064737133a1f2f493dea05220a7f048d77b41944c4c0be32f980239ce791",
        ),
        (
            "cola",
            "train.tsv",
            GLUE_FILES["cola"][0],
            "e0059e3b634b722a8da76141b78e5363d3348f37f39dbb8c83ed89f6c36b2222",
        ),
        ("qqp", "train.tsv", GLUE_FILES["qqp"][0], "7bdf87cee7273c7a7fe21a2a14b711f5993e4cec31cf076c1d39118198b3869c"),
        (
            "sst2",
            "test.tsv",
            "index\tsentence\n0\tfine\n1\tbad\n",
            "2f917f862232e680ef359181b65acf401bcfbea5c87cf3b22edc58d584bd71c6",
        ),
    ],
)
def test_fingerprints_stay_those_of_earlier_versions(tmp_path, task, name, content, fingerprint):
    """They are in the keys of the cache and in experiment.json, which a resumed run compares."""
    assert read(tmp_path, content, name, get_task(task), Path(name).stem).fingerprint == fingerprint


def test_a_local_file_is_neither_copied_nor_read_by_another_package(tmp_path, cache_dir):
    write(tmp_path, "train.tsv", GOOD)
    code = f"""
import sys
from tinybert_jax.data.rows import read_rows
from tinybert_jax.settings.sources import DataSource
from tinybert_jax.settings.tasks import get_task
rows = read_rows(get_task("classification"), DataSource(train={str(tmp_path / "train.tsv")!r}), "train")
print(rows.texts, {{"tensorflow_datasets", "array_record", "grain"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[('good',), ('bad',)] set()\n", "")
    assert not list(cache_dir.iterdir())
