"""The candidate table of the data augmentation on disk: its settings, its files, how it is read and continued."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinybert_jax.data.augmentation.rules import RULES
from tinybert_jax.data.rows import Rows
from tinybert_jax.errors import InputError, note
from tinybert_jax.models.files.frame import Frame
from tinybert_jax.models.files.tokenizer import tokenizer_fingerprint
from tinybert_jax.settings.choices import MIN_LENGTH, Preset

SETTINGS_FILE = "augmentation.json"
ROWS_PER_FILE = 256  # a killed build loses at most this many rows


@dataclass(frozen=True)
class Settings:
    """The settings of a table, beside its rows and its tokenizer.

    `variants` counts the variants per row in training, the row itself included. The table does not depend on it. With
    preset `official` it is one more than requested, because the authors' code writes the row and N copies.
    """

    preset: Preset
    variants: int
    max_length: int  # tokens of the longest text that the masked LM reads; later words get no candidates
    model: str  # fingerprint of the masked LM

    def __post_init__(self) -> None:
        if self.variants < 1 or self.max_length < MIN_LENGTH:
            raise InputError(
                f"variants is {self.variants} and max_length {self.max_length}; they must be at least 1 and"
                f" {MIN_LENGTH}"
            )

    def input_length(self, frame: Frame) -> int:
        """Tokens of the masked LM's longest input, which holds the sentence twice with `official`."""
        if RULES[self.preset].in_pairs:
            return 2 * (self.max_length - frame.size(1)) + frame.size(2)
        return self.max_length


@dataclass(frozen=True, eq=False)
class CandidateTable:
    """The concatenated words and candidates of all texts. A row of a pair task has two texts.

    Text i has the words `text_words[i]` to `text_words[i + 1]`. The pieces and candidates of word j start at
    `word_pieces[j]` and `word_candidates[j]`. A candidate of one piece is stored as the id of that piece. A candidate
    of several pieces is stored as -1 - p, and its pieces are those of phrase p.
    """

    pieces: np.ndarray  # int32
    word_pieces: np.ndarray  # int64 [words + 1]
    text_words: np.ndarray  # int64 [texts + 1]
    candidates: np.ndarray  # int32
    word_candidates: np.ndarray  # int64 [words + 1]
    phrases: np.ndarray  # int32
    phrase_pieces: np.ndarray  # int64 [phrases + 1]


def claim(directory: Path, rows: Rows, tokenizer: Any, neighbours: str, settings: Settings) -> None:
    """Write the settings into the directory, for a table that is begun or continued.

    Another number of variants is accepted with a note, because the candidates do not depend on it. If nothing has been
    computed yet, all settings are accepted.

    Raises:
        InputError: the directory holds anything but a table of the same settings, or cannot be written.
    """
    content = dataclasses.asdict(settings) | {
        "format_version": RULES[settings.preset].format_version,
        "rows": rows.fingerprint,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "neighbours": neighbours,
    }
    existing = _read_settings(directory)
    is_free = not directory.exists() or (
        directory.is_dir() and all(path.suffix == ".tmp" for path in directory.iterdir())
    )
    if existing is None and not is_free:
        raise InputError(f"{directory}: exists and holds no augmentation: give another --out")
    if existing is not None and not any(directory.glob("rows-*.npz")):
        existing = None
    for name, value in content.items():
        if existing is not None and existing.get(name) != value and name != "variants":
            known = {"rows": "of other rows", "tokenizer": "by another vocabulary", "neighbours": "by another --glove"}
            difference = known.get(name) or f"whose {name} is {existing.get(name)!r}, not {value!r}"
            raise InputError(f"{directory}: holds an augmentation {difference}: give another --out, or remove it")
    if existing is not None and (previous := existing.get("variants")) != settings.variants:
        option = previous if RULES[settings.preset].counts_row or not isinstance(previous, int) else previous - 1
        note(
            f"{directory}: variants of a row: {settings.variants} from now on, not {previous}; to resume a"
            f" distillation that was begun on these candidates, give --variants {option} again"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _replace(directory / SETTINGS_FILE, (json.dumps(content, indent=2) + "\n").encode())
    except OSError as error:
        raise InputError(f"{directory}: cannot be written ({error.strerror}): give another --out") from None


def load_table(directory: Path, rows: Rows, tokenizer: Any) -> tuple[CandidateTable, dict[str, Any]]:
    """The candidates that `build_table` wrote, and the content of `augmentation.json`.

    Raises:
        InputError: they are missing, unfinished or damaged, or were made from other rows or with another tokenizer.
    """
    content = _read_settings(directory)
    again = "run `tinybert augment` again"
    if content is None:
        raise InputError(f"{directory}: no {SETTINGS_FILE} in it: give a directory that `tinybert augment` wrote")
    where = directory / SETTINGS_FILE
    versions: dict[Any, int] = {preset: rules.format_version for preset, rules in RULES.items()}
    if content.get("format_version") != versions.get(content.get("preset")):
        raise InputError(f"{where}: written by another version of this program: {again} with another --out")
    if content.get("rows") != rows.fingerprint:
        raise InputError(f"{where}: made from other rows than the training rows given: {again} on these")
    if content.get("tokenizer") != tokenizer_fingerprint(tokenizer):
        raise InputError(f"{where}: made with another vocabulary than the model's: {again} with a --model of the same")
    parts = []
    for start in range(0, len(rows.texts), ROWS_PER_FILE):
        path = _file(directory, start)
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                parts.append(CandidateTable(**file))
        except FileNotFoundError:
            raise InputError(f"{path}: no such file: the table is unfinished; {again}, and it goes on") from None
        except Exception as error:  # a damaged file can fail in any way
            raise InputError(f"{path}: damaged ({error}): delete this file, and {again}") from None
    return _join(parts), content


def has_part(directory: Path, start: int) -> bool:
    """Whether the file of the rows from `start` on exists. A file that exists is complete."""
    return _file(directory, start).exists()


def save_part(directory: Path, start: int, part: CandidateTable) -> None:
    """Write the file of the rows from `start` on; it appears by one rename."""
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **vars(part))
    _replace(_file(directory, start), content.getvalue())


def _join(parts: list[CandidateTable]) -> CandidateTable:
    """The concatenation of tables, with continued offsets and phrase numbers."""

    def offsets(name: str) -> np.ndarray:
        arrays = [getattr(part, name) for part in parts]
        starts = np.cumsum([0, *(array[-1] for array in arrays)])
        joined = [array[:-1] + start for array, start in zip(arrays, starts, strict=False)]
        return np.concatenate([*joined, starts[-1:]])

    phrase_starts = np.cumsum([0, *(len(part.phrase_pieces) - 1 for part in parts)])
    candidates = [
        np.where(part.candidates < 0, part.candidates - start, part.candidates).astype(np.int32)
        for part, start in zip(parts, phrase_starts, strict=False)
    ]
    return CandidateTable(
        pieces=np.concatenate([part.pieces for part in parts]),
        word_pieces=offsets("word_pieces"),
        text_words=offsets("text_words"),
        candidates=np.concatenate(candidates),
        word_candidates=offsets("word_candidates"),
        phrases=np.concatenate([part.phrases for part in parts]),
        phrase_pieces=offsets("phrase_pieces"),
    )


def _read_settings(directory: Path) -> dict[str, Any] | None:
    """The content of `augmentation.json`; None if there is no such file."""
    path = directory / SETTINGS_FILE
    try:
        content = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}): give another directory") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a JSON object: give another directory")
    return content


def _file(directory: Path, start: int) -> Path:
    return directory / f"rows-{start:08}.npz"


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # another process may write the same file
    temporary.write_bytes(content)
    os.replace(temporary, path)
