"""Predictions for the rows of a file or a pipe, a part at a time."""

from __future__ import annotations

import csv
import io
import itertools
import json
import queue
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from tinybert_jax.data.stream import Row
from tinybert_jax.errors import InputError
from tinybert_jax.inference.predictor import THRESHOLD, Predictor
from tinybert_jax.tasks import ner
from tinybert_jax.tasks.multi_label import DELIMITER

ROWS_AT_ONCE = 1024  # number of rows among which rows of similar lengths are batched together


class Predicted(NamedTuple):
    """The prediction for a row, as JSON fields and as table cells, and numbers that must be finite."""

    fields: dict[str, Any]
    cells: dict[str, Any]
    numbers: Sequence[float]


def predict_rows(
    predictor: Predictor,
    chunks: Iterable[Sequence[Row]],
    name: str,
    unanswerable: bool = False,
    threshold: float = THRESHOLD,
) -> Iterator[list[tuple[Row, Predicted]]]:
    """The predictions of rows, chunk by chunk.

    Args:
        predictor: a predictor with any head.
        chunks: the rows, in parts.
        name: the file's name in errors.
        unanswerable: as in `Predictor.answers`.
        threshold: as in `Predictor.label_sets`.

    Raises:
        InputError: an output is not finite, or the rows do not fit the model.
    """
    for rows in chunks:
        with np.errstate(invalid="ignore"):  # outputs that are not finite are reported below
            predicted = prediction_of(predictor.head).predict(predictor, rows, unanswerable, threshold)
        for row, prediction in zip(rows, predicted, strict=True):
            if not np.isfinite(prediction.numbers).all():
                raise InputError(f"{predictor.name}: its output on {name}:{row.line} is not finite")
        yield [*zip(rows, predicted, strict=True)]


def _sequences(predictor: Predictor, rows: Sequence[Row], unanswerable: bool, threshold: float) -> list[Predicted]:
    texts = [row.texts[0] if len(row.texts) == 1 else row.texts for row in rows]
    if predictor.gives_numbers:
        numbers = [_short(prediction.value) for prediction in predictor(texts)]
        return [Predicted({"prediction": x}, {"prediction": x}, [x]) for x in numbers]
    labels = predictor.config.id2label
    result = []
    for likely in predictor.probabilities(texts):
        by_class = {label: _short(x) for label, x in zip(labels, likely.tolist(), strict=True)}
        cells = {f"probability.{label}": x for label, x in by_class.items()}
        best: Any = labels[int(likely.argmax())]
        written = best
        if predictor.config.is_multi_label:
            best = list(predictor.above(likely, threshold))
            written = DELIMITER.join(best)
        fields = {"prediction": best, "probabilities": by_class}
        result.append(Predicted(fields, {"prediction": written} | cells, [*by_class.values()]))
    return result


def _tags(predictor: Predictor, rows: Sequence[Row], unanswerable: bool, threshold: float) -> list[Predicted]:
    result = []
    for row, tagged in zip(rows, predictor.tags([row.texts[0] for row in rows]), strict=True):
        text = row.texts[0] if isinstance(row.texts[0], str) else " ".join(row.texts[0])
        ends = [start + len(word) for word, start in zip(tagged.words, tagged.starts, strict=True)]
        spans = [
            {"type": kind, "text": text[start:end], "start": start, "end": end}
            for kind, first, last in sorted(ner.spans(tagged.tags), key=lambda span: span[1])
            for start, end in [(tagged.starts[first], ends[last])]
        ]
        values = [_short(x) for x in tagged.probabilities]
        words = {"words": tagged.words} if isinstance(row.texts[0], str) else {}
        fields = words | {"prediction": tagged.tags, "probabilities": values, "spans": spans}
        cells = {name: " ".join(column) for name, column in (words | {"prediction": tagged.tags}).items()}
        result.append(Predicted(fields, cells, values))
    return result


def _answers(predictor: Predictor, rows: Sequence[Row], unanswerable: bool, threshold: float) -> list[Predicted]:
    result = []
    for text, start, probability in predictor.answers([row.texts for row in rows], unanswerable):
        fields = {"prediction": text, "start": start, "probability": _short(probability)}
        result.append(Predicted(fields, fields, [probability]))
    return result


def _vectors(predictor: Predictor, rows: Sequence[Row], unanswerable: bool, threshold: float) -> list[Predicted]:
    result = []
    for vector in predictor.embed([row.texts[0] for row in rows]):
        numbers = [_short(x) for x in vector.tolist()]
        result.append(Predicted({"embedding": numbers}, {"embedding": numbers}, numbers))
    return result


class HeadPredictions(NamedTuple):
    """For one head: the function that predicts rows, and the rows that it takes."""

    predict: Callable[[Predictor, Sequence[Row], bool, float], list[Predicted]]
    columns: tuple[str, ...] = ("text",)  # the default columns of the texts
    widths: tuple[int, ...] = (1, 2)  # possible numbers of texts per row
    takes_words: bool = False  # a text may be a list of words
    has_answers: bool = False  # predictions are answers to questions


# heads with a method other than calling the predictor
_OTHERS = {
    "tokens": HeadPredictions(_tags, widths=(1,), takes_words=True),
    "span": HeadPredictions(_answers, ("question", "context"), (2,), has_answers=True),
    "embedding": HeadPredictions(_vectors, widths=(1,)),
}


def prediction_of(head: str) -> HeadPredictions:
    """The row of the table for a head; without a row, the predictor is called."""
    return _OTHERS.get(head, HeadPredictions(_sequences))


def _short(number: float) -> float:
    """The number with the fewest digits that gives the same float32."""
    return float(str(np.float32(number)))


def in_chunks(rows: Iterator[Row], most: int) -> Iterator[list[Row]]:
    """Lists of `most` rows; the last may have fewer."""
    while chunk := [*itertools.islice(rows, most)]:
        yield chunk


def as_they_come(rows: Iterator[Row], most: int) -> Iterator[list[Row]]:
    """Lists of 1 to `most` rows: each has all rows that came while the list before was processed."""
    arrived: queue.Queue[Row | BaseException | None] = queue.Queue(most)

    def read() -> None:
        try:
            for row in rows:
                arrived.put(row)
        except BaseException as error:  # raised again in the thread that processes the rows
            arrived.put(error)
        else:
            arrived.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        items = [arrived.get()]
        while isinstance(items[-1], Row) and len(items) < most and not arrived.empty():
            items.append(arrived.get())
        if chunk := [item for item in items if isinstance(item, Row)]:
            yield chunk
        if isinstance(items[-1], BaseException):
            raise items[-1]
        if items[-1] is None:
            return


class Writer:
    """Formats rows with their predictions: all columns of the row, then those of the prediction."""

    def __init__(self, form: str, name: str) -> None:
        """`form` is tsv, csv or jsonl; `name` is the name of the rows' file in errors."""
        self.form, self.name = form, name
        self.header: list[str] | None = None

    def lines(self, row: Row, predicted: Predicted) -> str:
        """The lines of a row. In a table, the first call also returns the header.

        Raises:
            InputError: a column would be written twice, or a table cannot hold the row.
        """
        written = predicted.fields if self.form == "jsonl" else predicted.cells
        if twice := [column for column in written if column in row.cells]:
            raise InputError(f"{self.name}:{row.line}: has {twice[0]!r} already, which is written: rename it")
        if self.form == "jsonl":
            return json.dumps(row.cells | written, ensure_ascii=False) + "\n"
        cells = row.cells | written
        if self.header is None:
            self.header = [*cells]
            return self._record(row, self.header) + self._record(row, [*cells.values()])
        if [*cells] != self.header:
            raise InputError(f"{self.name}:{row.line}: has other keys than the first row: add --to jsonl")
        return self._record(row, [*cells.values()])

    def _record(self, row: Row, values: list[Any]) -> str:
        cells = [_cell(value) for value in values]
        if self.form == "csv":
            record = io.StringIO()
            csv.writer(record, lineterminator="\n").writerow(cells)
            return record.getvalue()
        if broken := [cell for cell in cells if re.search("[\t\r\n]", cell)]:
            raise InputError(
                f"{self.name}:{row.line}: {broken[0][:40]!r} holds a tab or a line break, which no .tsv can hold:"
                " add --to csv or --to jsonl"
            )
        return "\t".join(cells) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)
