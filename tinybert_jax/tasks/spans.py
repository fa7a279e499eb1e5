"""Windows over the contexts of questions, and the answers from a model's logits on them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tinybert_jax.cache import cached_arrays
from tinybert_jax.data.batches import PROGRESS_FROM
from tinybert_jax.data.rows import split_path
from tinybert_jax.data.tokens import TOKENIZE_AT_ONCE, Tokens
from tinybert_jax.errors import InputError
from tinybert_jax.models.files.frame import frame_of
from tinybert_jax.models.files.tokenizer import tokenizer_fingerprint
from tinybert_jax.settings.sources import DataSource
from tinybert_jax.settings.tasks import SplitName, Task
from tinybert_jax.tasks import reading, squad
from tinybert_jax.tasks.split import Reading, Split
from tinybert_jax.tasks.squad import Questions

STRIDE = 128  # largest number of tokens that two windows over a context share
MAX_QUESTION_LENGTH = 64  # tokens
FORMAT_VERSION = 1  # of the cached windows; increase it when the same questions would give other windows


@dataclass(frozen=True, eq=False)
class Windows:
    """The question of each window, and the characters of each token in the context.

    Windows are in the order of their questions. `char_starts` and `char_ends` are aligned with `Tokens.input_ids`.
    """

    questions: np.ndarray  # int32 [n], numbers of questions
    char_starts: np.ndarray  # int32 [sum of lengths], -1 for a token outside the context
    char_ends: np.ndarray  # int32 [sum of lengths], one past the last character; -1 outside the context


class Answer(NamedTuple):
    """An answer: its text, "" for none; its first character in the context, -1 for none; and its probability.

    The probability is that of its first token times that of its last, among the tokens of the context in one window
    and [CLS], which stands for no answer.
    """

    text: str
    start: int
    probability: float


def windows(
    questions: Questions,
    tokenizer: Any,
    max_length: int,
    stride: int,
    max_question_length: int = MAX_QUESTION_LENGTH,
    cache_dir: Path | None = None,
) -> tuple[Tokens, Windows]:
    """Each question with every part of its context: `[CLS] question [SEP] part [SEP]`, one row per part.

    Labels are the first and the last token of the first answer, int32 [n, 2]. In windows without the whole answer they
    are 0, 0, the position of [CLS], as in BERT (Devlin et al., arXiv 1810.04805, section 4.3).

    Args:
        questions: as read.
        tokenizer: a Hugging Face tokenizer with a Rust backend.
        max_length: tokens per window, special tokens included.
        stride: tokens that consecutive windows share.
        max_question_length: tokens; a longer question is cut.
        cache_dir: see `cache.cache_folder`.

    Raises:
        InputError: a question leaves no more than `stride` tokens for the context; or the cache cannot be written.
    """
    sizes = [max_length, stride, max_question_length]
    form = [FORMAT_VERSION, questions.fingerprint, tokenizer_fingerprint(tokenizer), *sizes]
    fingerprint = hashlib.sha256(json.dumps(form).encode()).hexdigest()
    arrays = cached_arrays(cache_dir, "windows", fingerprint, lambda: _window_arrays(questions, tokenizer, *sizes))
    return _windows(questions, arrays, fingerprint, tokenizer)


def encode_windows(questions: Questions, tokenizer: Any, max_length: int) -> tuple[Tokens, Windows]:
    """The windows of questions, as in `windows`, but not cached."""
    arrays = _window_arrays(questions, tokenizer, max_length, stride(max_length), MAX_QUESTION_LENGTH)
    return _windows(questions, arrays, "", tokenizer)


def stride(max_length: int) -> int:
    """The tokens that two windows share. Windows must advance, so short ones share less."""
    return min(STRIDE, max_length // 4)


def _windows(
    questions: Questions, arrays: dict[str, np.ndarray], fingerprint: str, tokenizer: Any
) -> tuple[Tokens, Windows]:
    placed = Windows(*(arrays.pop(name) for name in ("questions", "char_starts", "char_ends")))
    labels = _labels(questions, placed, arrays["offsets"])
    return Tokens(**arrays, labels=labels, fingerprint=fingerprint, pad_token_id=tokenizer.pad_token_id), placed


def _window_arrays(
    questions: Questions, tokenizer: Any, max_length: int, stride: int, max_question_length: int
) -> dict[str, np.ndarray]:
    """The fields of `Tokens` that the tokenizer computes, and those of `Windows`."""
    from tqdm import tqdm

    n, frame = len(questions), frame_of(tokenizer)
    ids: list[np.ndarray] = []
    chars: list[np.ndarray] = []
    pair_starts: list[int] = []
    numbers: list[int] = []
    with tqdm(total=n, desc="tokenize", unit="question", disable=n < PROGRESS_FROM) as bar:
        for start in range(0, n, TOKENIZE_AT_ONCE):
            part = slice(start, start + TOKENIZE_AT_ONCE)
            texts, longest = _cut_questions(questions.questions[part], tokenizer, max_question_length)
            room = max_length - longest - frame.size(2)
            if room <= stride:
                raise InputError(
                    f"max_length {max_length} leaves {max(room, 0)} tokens for the context beside a question of"
                    f" {longest}; windows share {stride}: give a larger max_length"
                )
            encoded = tokenizer(
                texts,
                list(questions.contexts[part]),
                truncation="only_second",
                max_length=max_length,
                stride=stride,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
                return_attention_mask=False,
            )
            for i, (row, places) in enumerate(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)):
                begin = len(frame.before) + encoded.sequence_ids(i).count(0) + len(frame.between)
                context = slice(begin, len(row) - len(frame.after))
                place = np.full((len(row), 2), -1, np.int32)
                place[context] = np.reshape(places[context], (-1, 2))
                ids.append(np.array(row, np.int32))
                chars.append(place)
                pair_starts.append(begin if frame.has_types else len(row))
            numbers += [start + i for i in encoded["overflow_to_sample_mapping"]]
            bar.update(len(texts))
    places = np.concatenate(chars)
    return {
        "input_ids": np.concatenate(ids),
        "offsets": np.cumsum([0, *map(len, ids)], dtype=np.int64),
        "pair_starts": np.array(pair_starts, np.int32),
        "questions": np.array(numbers, np.int32),
        "char_starts": places[:, 0],
        "char_ends": places[:, 1],
    }


def _cut_questions(questions: Sequence[str], tokenizer: Any, max_question_length: int) -> tuple[list[str], int]:
    """The questions, cut to `max_question_length` tokens, and the largest number of tokens of one."""
    encoded = tokenizer(
        list(questions),
        add_special_tokens=False,
        truncation=True,
        max_length=max_question_length,
        return_offsets_mapping=True,
    )
    places = encoded["offset_mapping"]
    cut = [text[: place[-1][1]] if place else "" for text, place in zip(questions, places, strict=True)]
    # if a character is several tokens, the cut keeps all of them
    return cut, max(len(ids) for ids in tokenizer(cut, add_special_tokens=False, verbose=False)["input_ids"])


def _labels(questions: Questions, windows: Windows, offsets: np.ndarray) -> np.ndarray:
    """The first and last token of the first answer in each window, int32 [n, 2]; zeros unless the answer is whole."""
    begins = np.array([starts[0] if starts else -1 for starts in questions.answer_starts])
    ends = begins + [len(texts[0]) if texts else 0 for texts in questions.answers]
    window = np.repeat(np.arange(len(windows.questions)), np.diff(offsets))
    question = windows.questions[window]
    inside = (windows.char_ends > begins[question]) & (windows.char_starts < ends[question])
    # A window has the whole answer if it has the answer's outermost tokens of all windows. The ends of the answer may
    # lie within a token, or on a character that the tokenizer drops.
    left = np.full(len(questions), np.iinfo(np.int32).max)
    right = np.full(len(questions), -1)
    np.minimum.at(left, question[inside], windows.char_starts[inside])
    np.maximum.at(right, question[inside], windows.char_ends[inside])
    labels = np.zeros((len(windows.questions), 2), np.int32)
    firsts = np.flatnonzero(inside & (windows.char_starts == left[question]))[
        ::-1
    ]  # reversed, so that the first one wins
    lasts = np.flatnonzero(inside & (windows.char_ends == right[question]))
    labels[window[firsts], 0] = firsts - offsets[window[firsts]]
    labels[window[lasts], 1] = lasts - offsets[window[lasts]]
    return np.where(labels.all(axis=1, keepdims=True), labels, 0).astype(np.int32)


def answers(
    questions: Questions,
    windows: Windows,
    tokens: Tokens,
    logits: np.ndarray,
    max_answer_length: int = 30,
    null_threshold: float = 0.0,
) -> list[str]:
    """The text of each question's best answer, cut from its context; "" for no answer. Arguments as `best_answers`."""
    best = best_answers(questions, windows, tokens, logits, max_answer_length, null_threshold)
    return [answer.text for answer in best]


def best_answers(
    questions: Questions,
    windows: Windows,
    tokens: Tokens,
    logits: np.ndarray,
    max_answer_length: int = 30,
    null_threshold: float = 0.0,
) -> list[Answer]:
    """Each question's best answer, cut from its context.

    The best span has the greatest sum of start and end logits, over all windows and all spans of the context, not only
    those of the 20 best starts and ends. If `questions.unanswerable`, the score of no answer is the sum at [CLS], and
    the smallest over the windows. There is no answer if that exceeds the best span's sum by more than `null_threshold`
    (Devlin et al., arXiv 1810.04805, section 4.3).

    Args:
        questions: as read.
        windows: the second result of `windows`.
        tokens: the first result of `windows`.
        logits: start and end logits [n, q, 2] of the rows of `tokens`, in their order; q is at least the longest row's
            length.
        max_answer_length: in tokens.
        null_threshold: in units of logits.
    """
    if logits.shape != (len(tokens), logits.shape[1], 2) or logits.shape[1] < tokens.lengths.max():
        raise ValueError(f"logits {logits.shape} must be [{len(tokens)}, q >= {tokens.lengths.max()}, 2]")
    flat = logits[np.arange(logits.shape[1]) < tokens.lengths[:, None]].astype(np.float64)
    in_context = windows.char_starts >= 0
    start, end = np.where(in_context[:, None], flat, -np.inf).T
    window = np.repeat(np.arange(len(tokens)), tokens.lengths)
    best = start + end  # the best sum of the spans that start here; at first, spans of one token
    last = np.arange(len(flat))
    for distance in range(1, min(max_answer_length, logits.shape[1])):
        score = np.where(window[:-distance] == window[distance:], start[:-distance] + end[distance:], -np.inf)
        better = np.flatnonzero(score > best[:-distance])
        best[better] = score[better]
        last[better] = better + distance
    first_windows = np.searchsorted(windows.questions, np.arange(len(questions) + 1))
    null = flat[tokens.offsets[:-1]].sum(axis=1)
    bounds = tokens.offsets[first_windows]
    # the start and the end of an answer are each one of the context's tokens, or [CLS], which comes first
    may_be = in_context.copy()
    may_be[tokens.offsets[:-1]] = True
    likely = np.where(may_be[:, None], flat, -np.inf)
    likely -= np.repeat(np.logaddexp.reduceat(likely, tokens.offsets[:-1]), tokens.lengths, axis=0)
    result = []
    for i, context in enumerate(questions.contexts):
        first = bounds[i] + np.argmax(best[bounds[i] : bounds[i + 1]])
        final = last[first]
        none = first_windows[i] + np.argmin(null[first_windows[i] : first_windows[i + 1]])
        is_null = questions.unanswerable and null[none] - best[first] > null_threshold
        if is_null or best[first] == -np.inf:
            first = final = tokens.offsets[none]
        cut = context[windows.char_starts[first] : windows.char_ends[final]] if in_context[first] else ""
        text = cut.strip()  # a token may hold the space before its word
        start = int(windows.char_starts[first]) + len(cut) - len(cut.lstrip()) if text else -1
        result.append(Answer(text, start, float(np.exp(likely[first, 0] + likely[final, 1]))))
    return result


def load_answers(
    task: Task,
    source: DataSource,
    split: SplitName,
    tokenizer: Any,
    max_length: int,
    labels: tuple[str, ...] | None,
) -> Split:
    """A split of questions; arguments and errors as in `tasks.kinds.load_split`."""
    if source.tfds is not None:
        questions = squad.from_tfds(source.tfds, split)
    else:
        questions = squad.read_squad(split_path(task, source, split), task.may_lack_answers)
    tokens, placed = windows(questions, tokenizer, max_length, stride(max_length))

    def predicted(logits: np.ndarray) -> list[str]:
        return answers(questions, placed, tokens, logits)

    def score(logits: np.ndarray) -> dict[str, float]:
        return squad.score(questions, predicted(logits))

    def judged(logits: np.ndarray) -> Reading:
        said = [(best.text, best.probability) for best in best_answers(questions, placed, tokens, logits)]
        scores = squad.score_each(questions, [text for text, _ in said])
        return reading.of_answers(questions.questions, questions.answers, said, scores)

    return Split(
        tokens,
        (),
        questions.labelled,
        score,
        lambda logits: score(logits)["f1"],
        lambda logits: squad.write(questions, predicted(logits)),
        task.selection,
        reading=judged,
    )
