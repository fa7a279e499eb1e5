"""A smaller vocabulary: only the pieces that occur in some texts, all special tokens, and all single characters.

The tokens of these texts stay the same. In other texts, words whose pieces were removed are cut into smaller pieces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinybert_jax.batch import Examples, Params
from tinybert_jax.compression.calibration import id_counts
from tinybert_jax.compression.method import Method
from tinybert_jax.data.reader import read_text
from tinybert_jax.data.suspects import refuse_json
from tinybert_jax.errors import InputError
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.files.frame import SPACES
from tinybert_jax.models.files.tokenizer import rebuilt
from tinybert_jax.models.parameters import select_pieces
from tinybert_jax.settings.compression import Vocabulary

LINES_AT_ONCE = 1000
CONTINUES = "##"  # prefix of a WordPiece piece that does not begin a word


def build(settings: Vocabulary) -> Method:
    """The method with these settings."""

    def retokenize(
        config: BertConfig, params: Params, tokenizer: Any, examples: Examples
    ) -> tuple[BertConfig, Params, Any]:
        used = set(np.flatnonzero(id_counts(examples, config.vocab_size)).tolist())
        used |= ids_of_files(settings.texts, tokenizer)
        return smaller_vocabulary(config, params, tokenizer, used)

    return Method(retokenize=retokenize)


def ids_of_files(paths: Sequence[str], tokenizer: Any) -> set[int]:
    """The ids that occur in the lines of text files.

    Raises:
        InputError: a file cannot be read.
    """
    used: set[int] = set()
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # removes that of the last call
    backend.no_padding()
    for path in paths:
        text = read_text(Path(path))
        refuse_json(Path(path), text, "a text a line")
        lines = text.split("\n")
        for first in range(0, len(lines), LINES_AT_ONCE):
            for encoding in backend.encode_batch(lines[first : first + LINES_AT_ONCE]):
                used |= set(encoding.ids)
    return used


def smaller_vocabulary(
    config: BertConfig, params: Params, tokenizer: Any, used: Iterable[int]
) -> tuple[BertConfig, Params, Any]:
    """The model and its tokenizer with only the used ids, all special tokens, and all single characters.

    Raises:
        InputError: the tokenizer is not WordPiece, BPE or Unigram.
    """
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    for transient in ("truncation", "padding"):  # settings of the last call
        described[transient] = None
    model, ids = described["model"], dict(tokenizer.get_vocab())
    kind = model.get("type") or ("BPE" if "merges" in model else "WordPiece")
    if kind not in ("WordPiece", "BPE", "Unigram"):
        raise InputError(
            f"the tokenizer's model is {kind}; a vocabulary is made smaller of WordPiece, BPE and Unigram"
        )
    tokens = {i: token for token, i in ids.items()}
    kept = {tokens[i] for i in used if i in tokens} | {entry["content"] for entry in described["added_tokens"]}
    kept |= {token for token in ids if len(_bare(token)) <= 1 or re.fullmatch("<0x[0-9A-F]{2}>", token)}
    if config.family.positions_after_padding:  # positions start after the padding id, so that must not change
        kept |= {tokens[i] for i in range(config.pad_token_id) if i in tokens}
    if kind == "BPE":
        kept = _with_parts(kept, model["merges"])
    order = sorted(kept, key=ids.__getitem__)
    new = {token: i for i, token in enumerate(order)}
    if kind == "Unigram":
        model["vocab"] = [entry for entry in model["vocab"] if entry[0] in new]
        model["unk_id"] = None if model["unk_id"] is None else new[tokens[model["unk_id"]]]
    else:
        model["vocab"] = {token: new[token] for token in order if token in model["vocab"]}
    if kind == "BPE":
        pairs = ((merge, _pair(merge)) for merge in model["merges"])
        model["merges"] = [merge for merge, (a, b) in pairs if {a, b, a + b} <= kept]
    for entry in described["added_tokens"]:
        entry["id"] = new[entry["content"]]
    described["post_processor"] = _renumbered(described["post_processor"], new)
    config, params = select_pieces(config, params, np.array([ids[token] for token in order]), new[tokenizer.pad_token])
    return config, params, rebuilt(tokenizer, described, config)


def _bare(token: str) -> str:
    """A piece without the prefix that marks the beginning or the continuation of a word."""
    for mark in (CONTINUES, *SPACES):
        token = token.removeprefix(mark)
    return token


def _pair(merge: Any) -> tuple[str, str]:
    """The two tokens of a merge, which files store as a string or as a list."""
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _with_parts(kept: set[str], merges: Sequence[Any]) -> set[str]:
    """The kept tokens, and all tokens from which they are merged."""
    kept = set(kept)
    for first, second in map(_pair, reversed(merges)):  # a token is merged before it is part of another
        if first + second in kept:
            kept |= {first, second}
    return kept


def _renumbered(part: Any, new: dict[str, int]) -> Any:
    """A post-processor's description with new ids. Its special tokens may be in several forms."""
    if isinstance(part, dict):
        if "ids" in part and "tokens" in part:
            return part | {"ids": [new[token] for token in part["tokens"]]}
        return {key: _renumbered(value, new) for key, value in part.items()}
    if isinstance(part, list):
        if len(part) == 2 and isinstance(part[0], str) and isinstance(part[1], int) and part[0] in new:
            return [part[0], new[part[0]]]
        return [_renumbered(value, new) for value in part]
    return part
