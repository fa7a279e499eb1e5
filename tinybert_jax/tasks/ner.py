"""Token classification on CoNLL files: sentences, their words' pieces, tags, and the score over spans."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinybert_jax.cache import cached_arrays
from tinybert_jax.data.batches import PROGRESS_FROM
from tinybert_jax.data.labels import UnknownLabel
from tinybert_jax.data.reader import read_text
from tinybert_jax.data.rows import split_path
from tinybert_jax.data.suspects import holds_json
from tinybert_jax.data.tokens import TOKENIZE_AT_ONCE, Tokens
from tinybert_jax.errors import InputError
from tinybert_jax.models.files.frame import frame_of
from tinybert_jax.models.files.tokenizer import tokenizer_fingerprint
from tinybert_jax.settings.sources import DataSource
from tinybert_jax.settings.tasks import SplitName, Task
from tinybert_jax.tasks import reading
from tinybert_jax.tasks.columns import OUTSIDE, check_columns
from tinybert_jax.tasks.split import Split

FORMAT_VERSION = 1  # of the cached pieces; increase it when the same sentences would give others
HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f"  # Chinese characters
UNTYPED = set("BIMESLUO")  # the tags of files in which all spans have one type, which is not written


@dataclass(frozen=True, eq=False)
class Sentences:
    """The words of n sentences, and a tag for each word if the file has tags.

    `lines` are the lines of the sentences' first words in the file `path`, from 1. Each word has a separate line.
    """

    words: Sequence[tuple[str, ...]]
    tags: Sequence[tuple[str, ...]] | None
    lines: Sequence[int]
    path: Path
    fingerprint: str

    @property
    def labelled(self) -> bool:
        """The words have tags."""
        return self.tags is not None


def read_conll(path: Path) -> Sentences:
    """The sentences of a file in CoNLL's layout: a word per line, its tag in the last column, blank lines between.

    Columns are separated by tabs if the line has one, otherwise by spaces. A file of one column has no tags. A line
    of the word `-DOCSTART-` only ends a sentence. Lines that begin with `#` before the first word of a sentence are
    comments (`# id 7`, as in MultiCoNER and CoNLL-U), unless they have the columns of a word and the tag of another
    word. A byte order mark and CRLF line ends are accepted.

    Raises:
        InputError: `path:line: what is wrong and what to do`.
    """
    text = read_text(path)
    if holds_json(text):
        raise InputError(
            f"{path}:1: holds JSON, and this task reads CoNLL files: write a word and its tag in each line, and a"
            " blank line after each sentence"
        )
    # Not splitlines(), which also splits at characters that occur inside real words (U+0085, U+2028).
    rows = [_columns(content) for content in [*text.split("\n"), ""]]
    surely_words = [row for row in rows if row and row[0] != "-DOCSTART-" and not row[0].startswith("#")]
    columns = len(surely_words[0]) if surely_words else 0
    known_tags = {row[-1] for row in surely_words}
    words: list[tuple[str, ...]] = []
    tags: list[tuple[str, ...]] = []
    lines: list[int] = []
    sentence: list[list[str]] = []
    for line, row in enumerate(rows, 1):
        if not row or row[0] == "-DOCSTART-":
            if sentence:
                words.append(tuple(row[0] for row in sentence))
                tags.append(tuple(row[-1] for row in sentence))
                lines.append(line - len(sentence))
            sentence = []
            continue
        is_word = len(row) == columns and (columns == 1 or row[-1] in known_tags)
        if not sentence and row[0].startswith("#") and surely_words and not is_word:
            continue
        columns = columns or len(row)
        if len(row) != columns:
            raise InputError(
                f"{path}:{line}: columns: {len(row)} instead of {columns}, as in the lines before: repair the line"
            )
        if not row[0] or not row[-1]:
            raise InputError(f"{path}:{line}: the {'tag' if row[0] else 'word'} is empty: fill it")
        sentence.append(row)
    if not words:
        raise InputError(f"{path}:1: the file holds no word: give one with a word and its tag in each line")
    check_columns(path, words, tags, lines)
    content = json.dumps([words, tags if columns > 1 else None])
    return Sentences(words, tags if columns > 1 else None, lines, path, hashlib.sha256(content.encode()).hexdigest())


def _columns(content: str) -> list[str]:
    content = content.removesuffix("\r")
    if not content.strip(" \t"):
        return []
    if "\t" in content:
        return [column.strip(" ") for column in content.split("\t")]
    return re.split(" +", content.strip(" "))


def discover_labels(sentences: Sentences) -> tuple[str, ...]:
    """The distinct tags of a training file, `O` first, the others sorted.

    Raises:
        InputError: there is no tag, only one, or too many to be classes.
    """
    if sentences.tags is None:
        raise InputError(f"{sentences.path}: there are no tags to learn: give a file with a tag in the last column")
    tags = [tag for sentence in sentences.tags for tag in sentence]
    labels = sorted(set(tags), key=lambda tag: (tag != OUTSIDE, tag))
    if len(labels) < 2:
        raise InputError(f"{sentences.path}: all words have the tag {labels[0]!r}: classification needs at least two")
    if len(labels) > max(20, len(tags) // 2):
        count = f"{len(labels)} different tags on {len(tags)} words"
        raise InputError(f"{sentences.path}: {count}: the last column must be the tag")
    return tuple(labels)


def align(
    sentences: Sentences, tokenizer: Any, max_length: int, labels: tuple[str, ...], cache_dir: Path | None = None
) -> Tokens:
    """The word pieces of the sentences, with a word's tag on its first piece and -1 on all other tokens.

    A sentence that does not fit into `max_length` continues in the next row, at a word. So each word of the file is
    predicted once. A word that the tokenizer drops (a control character) becomes the unknown token. A word that is
    longer than a row is cut.

    Args:
        sentences: as read.
        tokenizer: a Hugging Face tokenizer with a Rust backend.
        max_length: tokens per row, special tokens included; at least 3.
        labels: the tags by id, for example a teacher's.
        cache_dir: see `cache.cache_folder`.

    Returns:
        Tokens with one label per token, int32. If the file has no tags, ids of tags are 0.

    Raises:
        InputError: a tag is not in `labels` (`path:line: ...`), or the cache cannot be written.
    """
    ids = _tag_ids(sentences, labels)
    form = [FORMAT_VERSION, sentences.fingerprint, tokenizer_fingerprint(tokenizer), max_length]
    fingerprint = hashlib.sha256(json.dumps(form).encode()).hexdigest()
    arrays = cached_arrays(
        cache_dir, "words", fingerprint, lambda: _encode_words(sentences.words, tokenizer, max_length)
    )
    first_pieces = arrays.pop("first_pieces")
    token_labels = np.full(len(arrays["input_ids"]), -1, np.int32)
    token_labels[first_pieces] = ids
    return Tokens(**arrays, labels=token_labels, fingerprint=fingerprint, pad_token_id=tokenizer.pad_token_id)


def encode_words(sentences: Sequence[tuple[str, ...]], tokenizer: Any, max_length: int) -> Tokens:
    """The word pieces of sentences, as in `align`, but not cached, and with 0 in place of each word's tag."""
    arrays = _encode_words(sentences, tokenizer, max_length)
    labels = np.full(len(arrays["input_ids"]), -1, np.int32)
    labels[arrays.pop("first_pieces")] = 0
    return Tokens(**arrays, labels=labels, fingerprint="", pad_token_id=tokenizer.pad_token_id)


def split_words(text: str) -> list[tuple[str, int]]:
    """The words of a text and the positions of their first characters: split at white space and punctuation.

    Each punctuation mark before or after a word is a separate word, as in CoNLL's files, and so is each Chinese
    character.

    >>> split_words('Anna (of "U.S. Steel") left.')
    [('Anna', 0), ('(', 5), ('of', 6), ('"', 9), ('U.S', 10), ('.', 13), ('Steel', 15), ('"', 20), (')', 21),
     ('left', 23), ('.', 27)]
    """
    words = []
    for match in re.finditer(rf"[{HAN}]|[^\s{HAN}]+", text):
        start, end = match.span()
        while start < end and _is_mark(text[start]):
            words.append((text[start], start))
            start += 1
        behind = end
        while behind > start and _is_mark(text[behind - 1]):
            behind -= 1
        if behind > start:
            words.append((text[start:behind], start))
        words += [(text[i], i) for i in range(behind, end)]
    return words


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] in "PS"  # punctuation and symbols


def _tag_ids(sentences: Sentences, labels: tuple[str, ...]) -> np.ndarray:
    """The tag ids of all words in order, int32 [sum of words]; zeros if there are no tags."""
    if sentences.tags is None:
        return np.zeros(sum(map(len, sentences.words)), np.int32)
    ids = {label: i for i, label in enumerate(labels)}
    for tags, line in zip(sentences.tags, sentences.lines, strict=True):
        for i, tag in enumerate(tags):
            if tag not in ids:
                known = ", ".join(map(repr, labels))
                raise UnknownLabel(
                    f"{sentences.path}:{line + i}: unknown tag {tag!r}",
                    known,
                    "correct it in the file, or give a model of these tags",
                )
    return np.array([ids[tag] for tags in sentences.tags for tag in tags], np.int32)


def _encode_words(sentences: Sequence[tuple[str, ...]], tokenizer: Any, max_length: int) -> dict[str, np.ndarray]:
    """The arrays of `Tokens`, and the place of each word's first piece in `input_ids`."""
    from tqdm import tqdm

    n, frame = len(sentences), frame_of(tokenizer)
    ids: list[int] = []
    offsets = [0]
    first_pieces: list[int] = []
    with tqdm(total=n, desc="tokenize", unit="sentence", disable=n < PROGRESS_FROM) as bar:
        for start in range(0, n, TOKENIZE_AT_ONCE):
            chunk = [
                [frame.word_prefix + word for word in words] for words in sentences[start : start + TOKENIZE_AT_ONCE]
            ]
            # A sentence longer than the model's length is no mistake here, so the tokenizer must not warn.
            encoded = tokenizer(chunk, is_split_into_words=True, add_special_tokens=False, verbose=False)
            for i, words in enumerate(chunk):
                pieces: list[list[int]] = [[] for _ in words]
                for word, piece in zip(encoded.word_ids(i), encoded["input_ids"][i], strict=True):
                    pieces[word].append(piece)
                for row in _cut_rows([p or [tokenizer.unk_token_id] for p in pieces], max_length - frame.size(1)):
                    ids += frame.before
                    for word_pieces in row:
                        first_pieces.append(len(ids))
                        ids += word_pieces
                    ids += frame.after
                    offsets.append(len(ids))
            bar.update(len(chunk))
    return {
        "input_ids": np.array(ids, np.int32),
        "offsets": np.array(offsets, np.int64),
        "pair_starts": np.diff(offsets).astype(np.int32),
        "first_pieces": np.array(first_pieces, np.int64),
    }


def _cut_rows(words: list[list[int]], room: int) -> list[list[list[int]]]:
    """The words' pieces, cut into rows of at most `room` pieces."""
    rows: list[list[list[int]]] = [[]]
    used = 0
    for pieces in (word[:room] for word in words):
        if used + len(pieces) > room:
            rows.append([])
            used = 0
        rows[-1].append(pieces)
        used += len(pieces)
    return rows


def tags(sentences: Sentences, tokens: Tokens, logits: np.ndarray, labels: tuple[str, ...]) -> list[list[str]]:
    """The most probable tag of each word, sentence by sentence.

    Args:
        sentences: as read.
        tokens: the result of `align` for them.
        logits: [n, q, c] of the rows of `tokens`, in their order; q is at least the longest row's length.
        labels: the tags by id.
    """
    best = iter(word_logits(tokens, logits).argmax(axis=-1).tolist())
    return [[labels[next(best)] for _ in words] for words in sentences.words]


def word_logits(tokens: Tokens, logits: np.ndarray) -> np.ndarray:
    """The logits of all words in order [w, c], which are those of their first pieces. Arguments as in `tags`."""
    if logits.ndim != 3 or len(logits) != len(tokens) or logits.shape[1] < tokens.lengths.max():
        raise ValueError(f"logits {logits.shape} must be [{len(tokens)}, q >= {tokens.lengths.max()}, c]")
    return logits[np.arange(logits.shape[1]) < tokens.lengths[:, None]][tokens.labels >= 0]


def score(sentences: Sentences, predicted: Sequence[Sequence[str]]) -> dict[str, float]:
    """`f1`, `precision`, `recall` of spans (type, first and last word), micro-averaged, and `accuracy` of words.

    For IOB1, IOB2 and IOBES, scores are those of seqeval's default mode, even if tags break the scheme; for BMES, if
    none does. There are two differences. In BILOU, adjacent spans of one type stay separate; seqeval's default joins
    them, because it does not know U and L. A tag without a prefix is a span of one word, as in `conlleval -r`; seqeval
    drops its first letter and joins equal neighbours. If there is no span at all, the first three scores are 0.
    """
    if sentences.tags is None:
        raise ValueError("sentences without tags cannot be scored")
    correct = guessed = existing = equal = 0
    untyped = {tag for tags in (*sentences.tags, *predicted) for tag in tags} <= UNTYPED
    for gold, guess in zip(sentences.tags, predicted, strict=True):
        gold_spans, guessed_spans = spans(gold, untyped), spans(guess, untyped)
        correct += len(gold_spans & guessed_spans)
        guessed += len(guessed_spans)
        existing += len(gold_spans)
        equal += sum(a == b for a, b in zip(gold, guess, strict=True))
    return {
        "f1": 2 * correct / (guessed + existing) if correct else 0.0,
        "precision": correct / guessed if correct else 0.0,
        "recall": correct / existing if correct else 0.0,
        "accuracy": equal / sum(map(len, sentences.tags)),
    }


def spans(tags: Sequence[str], untyped: bool = False) -> set[tuple[str, int, int]]:
    """Type, first and last word of each span that the tags of a sentence mark, in IOB1, IOB2, IOBES, BMES or BILOU.

    A span begins at B, S or U, after O, E, S, L or U, and if the type changes. So an I needs no B before it, as in
    conlleval (Tjong Kim Sang and De Meulder 2003). A tag without a prefix, such as a part of speech, is a span of one
    word. In `untyped` tags (B, I, O), the letter is the prefix, and there is one type.

    >>> sorted(spans(["B-PER", "I-PER", "O", "I-LOC", "NOUN"]))
    [('LOC', 3, 3), ('NOUN', 4, 4), ('PER', 0, 1)]
    """
    result: list[tuple[str, int, int]] = []
    is_open = False
    for i, tag in enumerate(tags):
        if tag == OUTSIDE:
            is_open = False
            continue
        prefix, kind = tag.split("-", 1) if re.match("[BIMESLU]-.", tag) else (tag, "") if untyped else ("S", tag)
        if is_open and prefix not in "BSU" and result[-1][0] == kind:
            result[-1] = (kind, result[-1][1], i)
        else:
            result.append((kind, i, i))
        is_open = prefix in "BIM"
    return set(result)


def write(sentences: Sentences, predicted: Sequence[Sequence[str]]) -> str:
    """The content of a file of predictions: word, tab, tag; a blank line after each sentence."""
    return "".join(
        "".join(f"{word}\t{tag}\n" for word, tag in zip(words, tags, strict=True)) + "\n"
        for words, tags in zip(sentences.words, predicted, strict=True)
    )


def load_tags(
    task: Task,
    source: DataSource,
    split: SplitName,
    tokenizer: Any,
    max_length: int,
    labels: tuple[str, ...] | None,
) -> Split:
    """A split of sentences with a tag for each word; arguments and errors as in `tasks.kinds.load_split`."""
    if source.tfds is not None:
        raise InputError("task 'ner' reads CoNLL files: give --data DIR, or --train FILE --dev FILE")
    sentences = read_conll(split_path(task, source, split))
    if labels is None:
        train = sentences if split == "train" else read_conll(split_path(task, source, "train"))
        labels = discover_labels(train)
    tokens = align(sentences, tokenizer, max_length, labels)

    def predicted(logits: np.ndarray) -> list[list[str]]:
        return tags(sentences, tokens, logits, labels)

    def scores(logits: np.ndarray) -> dict[str, float]:
        return score(sentences, predicted(logits))

    return Split(
        tokens,
        labels,
        sentences.labelled,
        scores,
        lambda logits: scores(logits)["f1"],
        lambda logits: write(sentences, predicted(logits)),
        task.selection,
        tables=lambda logits: reading.tag_tables(sentences.tags or (), labels, word_logits(tokens, logits)),
        reading=lambda x: reading.of_tags(sentences.words, sentences.tags or (), labels, word_logits(tokens, x)),
    )
