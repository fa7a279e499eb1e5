"""Question answering on SQuAD 1.1 and 2.0: reading questions, the official score, and the file of predictions."""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinybert_jax.data.reader import json_object, json_type, read_text
from tinybert_jax.data.suspects import holds_json
from tinybert_jax.data.tfds import tfds_records
from tinybert_jax.errors import InputError

FORMAT_VERSION = 1  # increase it when the same file would give other questions


@dataclass(frozen=True, eq=False)
class Questions:
    """n questions, each about its context.

    `answers` are the correct texts of each question, `()` for none, and `answer_starts` their first characters in the
    context. `labelled` says whether the answers are known. With `unanswerable`, as in SQuAD 2.0, a question may have
    none.
    """

    ids: Sequence[str]
    questions: Sequence[str]
    contexts: Sequence[str]
    answers: Sequence[tuple[str, ...]]
    answer_starts: Sequence[tuple[int, ...]]
    labelled: bool
    unanswerable: bool
    fingerprint: str

    def __len__(self) -> int:
        return len(self.ids)


def read_squad(path: Path, may_lack_answers: bool = False) -> Questions:
    """The questions of a file in the layout of SQuAD 1.1 or 2.0. `answers` may be missing in all of them.

    The layout of the Hugging Face hub is read too: JSON lines or a list of questions, each with its context, and with
    `{"text": [...], "answer_start": [...]}` as answers.

    An answer may differ from the context in the white space around it, as a few official ones do. An empty list of
    answers means that there is none, as for evaluate-v2.0.py, if the file's version is 2 or with `may_lack_answers`.

    Raises:
        InputError: `path: data[3].paragraphs[0].qas[2]: what is wrong and what to do`.
    """
    content = _content(path)
    entries = []
    for i, article in enumerate(_field(content, "data", list, str(path))):
        if _is_question(article):
            entries.append((f"{path}: data[{i}]", _text(article, "context", f"{path}: data[{i}]"), article))
            continue
        for j, paragraph in enumerate(_field(article, "paragraphs", list, f"{path}: data[{i}]")):
            where = f"{path}: data[{i}].paragraphs[{j}]"
            context = _text(paragraph, "context", where)
            for k, qa in enumerate(_field(paragraph, "qas", list, where)):
                entries.append((f"{where}.qas[{k}]", context, qa))
    unanswerable = str(content.get("version", "")).lstrip("vV").startswith("2")
    return _questions(str(path), entries, unanswerable, may_lack_answers or unanswerable)


def _content(path: Path) -> Any:
    """The JSON of a file. JSON lines or a list become an object with the entry `data`."""
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        lines = text.rstrip("\r\n").split("\n")
        if len(lines) > 1 and holds_json(lines[0]):
            return {"data": [json_object(path, number, line) for number, line in enumerate(lines, 1)]}
        line = getattr(error, "lineno", 1)
        raise InputError(f"{path}:{line}: not JSON ({error}): give a file in SQuAD's layout") from None
    if _is_question(content):
        return {"data": [content]}
    return {"data": content} if isinstance(content, list) and all(isinstance(i, dict) for i in content) else content


def _is_question(value: Any) -> bool:
    return isinstance(value, dict) and "question" in value and "paragraphs" not in value


def from_tfds(name: str, split: str) -> Questions:
    """The questions of a prepared TFDS set with SQuAD's features, such as squad/v1.1 and squad/v2.0.

    Args:
        name: the name of the set.
        split: train, dev (TFDS calls it validation) or test.

    Raises:
        InputError: the set is not prepared, has no such split or other features, or a question is malformed.
    """
    part = "validation" if split == "dev" else split
    features, records = tfds_records(name, part)
    for feature in ("id", "context", "question", "answers"):
        if feature not in features:
            names = ", ".join(map(repr, features))
            raise InputError(f"{name}[{part}]: no feature {feature!r}; there are {names}: give a set like squad/v1.1")
    entries = []
    for i, record in enumerate(records):
        answers = zip(record["answers"]["text"], record["answers"]["answer_start"], strict=True)
        qa: dict[str, Any] = {
            "id": record["id"].decode(),
            "question": record["question"].decode(),
            "answers": [{"text": text.decode(), "answer_start": int(start)} for text, start in answers],
        }
        if "is_impossible" in features:
            qa["is_impossible"] = bool(record["is_impossible"])
        entries.append((f"{name}[{part}]:{i}", record["context"].decode(), qa))
    return _questions(f"{name}[{part}]", entries, "is_impossible" in features)


def _questions(
    where: str, entries: Iterable[tuple[str, str, Any]], unanswerable: bool, may_lack_answers: bool = False
) -> Questions:
    """Check the questions. An entry is a question's place, for messages, its context and its JSON object."""
    places: dict[str, str] = {}
    rows: list[tuple[str, str, list[tuple[str, int]]]] = []
    unlabelled = []
    content = hashlib.sha256(json.dumps([FORMAT_VERSION, unanswerable]).encode())
    for place, context, qa in entries:
        name, question = _text(qa, "id", place), _text(qa, "question", place)
        if name in places:
            raise InputError(f"{place}: the id {name!r} is also used by {places[name]}: give each question its own")
        places[name] = place
        answers = _answers(qa, context, place, may_lack_answers)
        if answers is None:
            unlabelled.append(place)
        rows.append((question, context, answers or []))
        unanswerable |= "is_impossible" in qa or answers == []
        content.update(json.dumps([name, *rows[-1], answers is None]).encode())
    if not rows:
        raise InputError(f"{where}: there is no question: give another file")
    if unlabelled and len(unlabelled) < len(rows):
        raise InputError(f"{unlabelled[0]}: no 'answers', which other questions have: add them, or remove them all")
    return Questions(
        ids=list(places),
        questions=[question for question, _, _ in rows],
        contexts=[context for _, context, _ in rows],
        answers=[tuple(text for text, _ in answers) for _, _, answers in rows],
        answer_starts=[tuple(start for _, start in answers) for _, _, answers in rows],
        labelled=not unlabelled,
        unanswerable=unanswerable,
        fingerprint=content.hexdigest(),
    )


def _answers(qa: dict[str, Any], context: str, where: str, may_lack_answers: bool) -> list[tuple[str, int]] | None:
    """The text, as in the context, and the first character of each answer; None without answers in the file."""
    impossible = _field(qa, "is_impossible", bool, where) if "is_impossible" in qa else False
    if "answers" not in qa and not impossible:
        return None
    columns = qa.get("answers")
    if isinstance(columns, dict) and all(isinstance(columns.get(key), list) for key in ("text", "answer_start")):
        if len(columns["text"]) != len(columns["answer_start"]):
            raise InputError(f"{where}: 'answers' has not as many texts as places: give each text its answer_start")
        pairs = zip(columns["text"], columns["answer_start"], strict=True)
        qa = qa | {"answers": [{"text": text, "answer_start": start} for text, start in pairs]}
    answers = _field(qa, "answers", list, where) if "answers" in qa else []
    if impossible and answers:
        raise InputError(f"{where}: is_impossible is true, but there are answers: correct one of the two")
    if not answers and not impossible:
        if may_lack_answers and "is_impossible" in qa:
            raise InputError(f"{where}: is_impossible is false, but there is no answer: correct one of the two")
        if not may_lack_answers:
            raise InputError(
                f"{where}: there is no answer: give one, or is_impossible true and --task squad2 (or no 'answers' in"
                " the file)"
            )
    result = []
    for i, answer in enumerate(answers):
        place = f"{where}.answers[{i}]"
        text, start = _text(answer, "text", place).strip(), _field(answer, "answer_start", int, place)
        rest = context[start:].lstrip() if start >= 0 else ""
        if not text:
            raise InputError(f"{place}: 'text' is empty: give the answer's text, or no answer")
        if not rest.startswith(text):
            raise InputError(f"{place}: {_misplaced(text, start, context)}")
        result.append((text, len(context) - len(rest)))
    return result


def _misplaced(text: str, start: int, context: str) -> str:
    """A message about a wrong place of an answer, and what to do."""
    if 0 <= start < len(context):
        problem = f"answer_start {start} points at {context[start:][: len(text)]!r} and not at {text!r}"
    else:
        problem = f"answer_start {start} lies outside the context of {len(context)} characters"
    places = [match.start() for match in re.finditer(re.escape(text), context)]
    if not places:
        return f"{problem}, which does not hold {text!r}: an answer must be a part of its context, letter by letter"
    others = f" (or {len(places) - 1} other places)" if len(places) > 1 else ""
    return f"{problem}; {text!r} is at {places[0]}{others}: count characters from 0"


def _field(owner: Any, key: str, kind: type, where: str) -> Any:
    """The value of a key in the JSON object at `where`. It is checked that the key exists and the type is `kind`."""
    if not isinstance(owner, dict):
        raise InputError(f"{where}: {json_type(owner)} instead of an object: give a file in SQuAD's layout")
    if key not in owner:
        raise InputError(f"{where}: no key {key!r}: give a file in SQuAD's layout")
    value = owner[key]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        expected = {list: "a list", str: "a string", bool: "true or false", int: "a whole number"}[kind]
        raise InputError(f"{where}: {key!r} is {json_type(value)} instead of {expected}: write one")
    return value


def _text(owner: Any, key: str, where: str) -> str:
    value = _field(owner, key, str, where)
    if re.search("[\0\ud800-\udfff]", value):
        raise InputError(f"{where}: {key!r} holds a NUL or half a surrogate pair: remove it")
    return value


def score(questions: Questions, predictions: Sequence[str]) -> dict[str, float]:
    """The means of `f1` and `exact_match`, in [0, 1]. The best of a question's correct answers counts.

    They are computed as in the official evaluation scripts: v2.0's if `questions.unanswerable`, else v1.1's. The two
    scripts differ only on answers that consist of articles and punctuation.
    """
    f1 = exact = 0.0
    for of_words, equal in score_each(questions, predictions):
        f1 += of_words
        exact += equal
    return {"f1": f1 / len(questions), "exact_match": exact / len(questions)}


def score_each(questions: Questions, predictions: Sequence[str]) -> Iterator[tuple[float, float]]:
    """F1 and exact match, 1 or 0, of each question; see `score`."""
    for gold, prediction in zip(questions.answers, predictions, strict=True):
        answers = [_normalised(text) for text in gold]
        if questions.unanswerable:
            answers = [words for words in answers if words] or [[]]
        predicted = _normalised(prediction)
        exact = float(max(predicted == words for words in answers))
        yield max(_f1(predicted, words, float(questions.unanswerable)) for words in answers), exact


def _normalised(text: str) -> list[str]:
    """The words that are compared: lower case, without ASCII punctuation and articles."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def _f1(predicted: list[str], answer: list[str], if_empty: float) -> float:
    """F1 of words, each counted as often as it occurs in both; `if_empty` if both are empty."""
    if not predicted and not answer:
        return if_empty
    return 2 * (Counter(predicted) & Counter(answer)).total() / (len(predicted) + len(answer))


def write(questions: Questions, predictions: Sequence[str]) -> str:
    """The content of a predictions file, as the official evaluation scripts read it: `{id: text}`."""
    return json.dumps(dict(zip(questions.ids, predictions, strict=True)), indent=2, ensure_ascii=False) + "\n"
