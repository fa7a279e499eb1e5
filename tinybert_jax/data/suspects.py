"""Detection of data that would be read wrongly without an error, because the file is not what its name says."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tinybert_jax.errors import InputError, nearest

# with possessive quantifiers: an open quotation mark would take memory for every character after it
QUOTED_CELL = re.compile(r'(?m)(?:^|(?<=\t))"[^"]*+(?:""[^"]*+)*+"(?=\t|\r?$)')
SEPARATORS = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars"}
SAVE_WITH = (
    "a .tsv has tabs, and a .csv commas or semicolons: save it again, as pandas does: to_csv(FILE, index=False)"
)
LIST = r"""[\[{(](?:|.*[,'"].*|[01.]+(?: +[01.]+)+)[\]})]"""  # a list as Python, JSON or numpy writes it
BITS = "zeros and ones, one for each class: write the names of a row's classes in their place"
LONGEST_NAME = 4  # words in the name of a column
QUOTES_ARE_NO_PART = "its cells are quoted, as pandas does it; the quotes are no part of them"
ONE_VALUE = (
    "is one value of JSON: write one object a line, as pandas does by to_json(FILE, orient='records', lines=True)"
)
ONE_LABEL = "each row needs one label (for several: --task multi_label)"


def holds_json(text: str) -> bool:
    """Whether the text is JSON lines, a JSON object, or a list of JSON objects or lists.

    >>> holds_json('{"text": "fine", "label": 1}'), holds_json("[1] a citation"), holds_json("{ O")
    (True, False, False)
    """
    first_line = text.lstrip().partition("\n")[0]
    if first_line[:1] not in ("{", "["):
        return False
    for part in (first_line, text):
        try:
            value = json.loads(part)
        except (ValueError, RecursionError):
            continue
        return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(i, dict | list) for i in value))
    return False


def refuse_json(path: Path, text: str, expected: str) -> None:
    """Refuse JSON in a file whose name says that it is something else.

    Raises:
        InputError: the file holds JSON.
    """
    if holds_json(text):
        raise InputError(f"{path}:1: holds JSON, and not {expected}: write one JSON object a line, and name it .jsonl")


def refuse_one_value(path: Path, text: str) -> None:
    """Refuse a JSON file that is a single value or an object of columns, instead of JSON lines.

    Raises:
        InputError: it is such a file.
    """
    first_line = text.partition("\n")[0].strip()
    if first_line != text.strip() and first_line[:1] == "{" and first_line[-1:] == "}":
        return  # JSON lines; the rest of a large file needs no second reading
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return
    is_columns = isinstance(value, dict) and value and all(isinstance(part, dict | list) for part in value.values())
    if isinstance(value, list) or is_columns or "\n" in text.strip():
        raise InputError(f"{path}:1: {ONE_VALUE}")


def has_csv_quotes(text: str) -> bool:
    """Whether a table with tabs is quoted as pandas and other CSV writers do it. GLUE's files are not.

    It is, if three conditions hold. Quotation marks are only at both ends of a cell or doubled within it. All rows,
    read with quotes, have the same number of cells. And a cell has a doubled mark, or all cells of the first line are
    quoted, or the rows would have different numbers of cells if read without quotes.

    >>> has_csv_quotes('text\\tlabel\\n"a ""good"" film"\\tx'), has_csv_quotes('text\\tlabel\\n"Good!"\\tx')
    (True, False)
    """
    if '"' not in text or '"' in QUOTED_CELL.sub("", text):
        return False
    lines = [line.removesuffix("\r").split("\t") for line in text.rstrip("\r\n").split("\n")]
    is_marked = any('""' in cell[1:-1] for cell in QUOTED_CELL.findall(text))
    if not is_marked and not all(map(QUOTED_CELL.fullmatch, lines[0])) and len(set(map(len, lines))) == 1:
        return False
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    return len(set(map(len, csv.reader(io.StringIO(text.rstrip("\r\n"), newline=""), delimiter="\t")))) == 1


def csv_separator(header: str) -> str:
    """The separator of a .csv with this first line. Where a comma is the decimal point, spreadsheets write semicolons.

    >>> csv_separator("text;label"), csv_separator("text,label"), csv_separator("text")
    (';', ',', ',')
    """
    return ";" if ";" in header and "," not in header else ","


def other_separator(header: Sequence[str], separator: str) -> str:
    """The name of another separator in a header that was read as one cell; "" if there is none."""
    if len(header) != 1:
        return ""
    return next((name for sign, name in SEPARATORS.items() if sign != separator and sign in header[0]), "")


def no_column(column: str, header: Sequence[str]) -> str:
    """The first part of a message about a column that a file has not."""
    apart, spaced = column.split(","), [name for name in header if name.strip() == column]
    if spaced:
        similar = f"; the header has {spaced[0]!r}, with a space: remove it"
    elif len(apart) > 1 and all(part in header for part in apart):
        similar = f"; did you mean {' '.join(apart)}, with a space between the names?"
    else:
        similar = nearest(column, header)
        if not similar and any(len(name.split()) > LONGEST_NAME for name in header):
            similar = "; does the file lack the line with the names of its columns?"
    return f"no column {column!r}{similar}; the columns are {', '.join(map(repr, header))}"


def counts_rows(values: Sequence[str], least: int = 3) -> bool:
    """Whether the values, at least `least`, are 0, 1, 2, ... or 1, 2, 3, ...: an index instead of texts or labels.

    >>> counts_rows(["1", "2", "3"]), counts_rows(["1", "3", "2"])
    (True, False)
    """
    first = values[0] if values else ""
    return (
        len(values) >= least
        and first in ("0", "1")
        and all(value == str(number) for number, value in enumerate(values, int(first)))
    )


def several_labels(labels: Sequence[str]) -> str:
    """A label that is several labels; "" if there is none.

    It is a written list, a row of zeros and ones, or labels with a semicolon, bar or comma between them, each of which
    occurs in another row too, alone or with others.

    >>> several_labels(["a;b", "a", "b"]), several_labels(["Toys, games", "Books"]), several_labels(["['a']", "x"])
    ('a;b', '', "['a']")
    """
    distinct = list(dict.fromkeys(labels))
    for label in distinct:
        if re.fullmatch(LIST, label, re.DOTALL):
            return label
    if distinct and all(re.fullmatch("[01](?:[ ,;|]+[01])+", label) for label in distinct):
        return distinct[0]
    for separator in (";", "|", ","):
        parts = {label: {part.strip() for part in label.split(separator)} for label in distinct}
        occurrences = Counter(part for label in distinct for part in parts[label])
        for label in distinct:
            if len(parts[label]) > 1 and all(part and occurrences[part] > 1 for part in parts[label]):
                return label
    return ""


def are_bits(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the rows' labels are a zero or one for each class, instead of names.

    >>> are_bits([("1", "0", "1"), ("0", "0", "1")]), are_bits([("1", "0"), ("1",)])
    (True, False)
    """
    bits = {"0", "1", "0.0", "1.0", "true", "false", "True", "False"}
    return len(set(map(len, rows))) == 1 and len(rows[0]) > 1 and all(bits.issuperset(row) for row in rows)


def bit_columns(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The columns of a table with only zeros and ones, which may be one for each class; [] if there is only one."""
    columns = zip(header, zip(*rows, strict=False), strict=False)
    bits = [name for name, cells in columns if {"0", "1"}.issuperset(cells)]
    return bits if len(bits) > 1 else []


def odd_class(names: Sequence[str]) -> str:
    """A message if a class name stands for a missing label, or two names are spellings of one; "" if none is.

    >>> odd_class(["neg", "pos"])
    ''
    >>> odd_class(["Neg", "Pos", "neg", "pos"])
    "'Neg' and 'neg', 'Pos' and 'pos' are read as different classes: if they are one, write them alike"
    """
    for name in names:
        if name in ("None", "\\N") or name.casefold() in ("nan", "null", "n/a", "<na>"):
            return f"{name!r} is read as a class: if it stands for no label, remove its rows"
    alike: dict[str | float, list[str]] = {}
    for name in names:
        key: str | float = name.casefold()
        with contextlib.suppress(ValueError):
            key = float(name)
        alike.setdefault(key, []).append(name)
    spellings = ", ".join(" and ".join(map(repr, same)) for same in alike.values() if len(same) > 1)
    return spellings and f"{spellings} are read as different classes: if they are one, write them alike"


def unknown_kind(path: Path, advice: str) -> InputError:
    """The error for a file with an unknown suffix. For a spreadsheet, it says how to make a .csv."""
    suffix = path.suffix.lower()
    if suffix in (".xlsx", ".xls", ".ods"):
        return InputError(f"{path}: is a spreadsheet: save the sheet as .csv, in UTF-8")
    return InputError(f"{path}: unknown kind of file {suffix!r}: {advice}")
