"""The tokenizer of a Hugging Face directory: loading, and questions about its vocabulary and settings."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinybert_jax.errors import InputError, first_line, note
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.files.foreign import HEAD, foreign_kind
from tinybert_jax.models.files.frame import Frame, frame_of
from tinybert_jax.models.files.hub import TOKENIZER_FILES, resolve
from tinybert_jax.models.files.sentence import sentence_length
from tinybert_jax.models.files.weights import read_json
from tinybert_jax.settings.choices import MIN_LENGTH

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


TEMPLATE = "text_template"  # an entry of tokenizer_config.json
PADDED_BY = 128  # rows: a word table that is padded to a multiple of 8, 64 or 128 has fewer to spare


def load_tokenizer(directory: str | Path, config: BertConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face directory, checked against the model's vocabulary.

    A note tells of a word table with so many rows to spare that the tokenizer's files may be cut short.

    Raises:
        InputError: there are no tokenizer files; a special token is missing from the vocabulary; an id is outside the
            word table; `model_max_length` is not a length; or there is no Rust backend.
    """
    path = resolve(str(directory))
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        advice = "copy the tokenizer's files into the directory"
        if pieces := next(path.glob("*.model"), None):
            advice += f" ({pieces.name} alone is not read: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR))"
        raise InputError(f"{path}: no {' or '.join(TOKENIZER_FILES)}; {advice}")
    for name in TOKENIZER_FILES:
        if (path / name).is_file() and (kind := foreign_kind((path / name).read_bytes()[:HEAD])):
            raise InputError(f"{path / name}: {kind}")
    try:
        tokenizer = from_files(path, **_hints(path, config))
    except InputError:
        raise
    except Exception as error:  # the Rust backend raises bare Exception
        advice = "copy the tokenizer's files anew"
        if not (path / "tokenizer.json").is_file():  # the only file that all versions of transformers read
            advice += ", with tokenizer.json, or update transformers"
        raise InputError(f"{path}: the tokenizer cannot be read ({first_line(error)}): {advice}") from None
    if not hasattr(tokenizer, "backend_tokenizer"):
        kind = type(tokenizer).__name__
        raise InputError(f"{path}: {kind} has no Rust backend, which is needed: give a model with a tokenizer.json")
    # A special token that the vocabulary lacks is appended to it, under an id that the model was never trained on.
    vocabulary = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
    for token in ("pad", "unk", "cls", "sep"):
        text = getattr(tokenizer, f"{token}_token")
        if text is None or text not in vocabulary:
            named = f", which is to be {text!r}" if text is not None else ""
            raise InputError(
                f"{path}: the tokenizer's vocabulary has no {token} token{named}: copy the tokenizer's files anew"
            )
    if vocabulary.keys() <= set(tokenizer.all_special_tokens):
        raise InputError(
            f"{path}: the tokenizer, a {type(tokenizer).__name__}, finds no words in the files there: copy the model's"
            " tokenizer.json into the directory"
        )
    if blank := {token for token, i in vocabulary.items() if i >= config.vocab_size and not token.strip()}:
        # from blank lines at the end of a vocab.txt; no text has such a token
        described = json.loads(tokenizer.backend_tokenizer.to_str())
        if isinstance(pieces := described["model"]["vocab"], dict):
            described["model"]["vocab"] = {token: i for token, i in pieces.items() if token not in blank}
            return rebuilt(tokenizer, described, config)
    # the largest id, not the number of tokens: if a vocab.txt holds a token twice, an id is left out
    largest = max(tokenizer.get_vocab().values())
    if largest >= config.vocab_size:
        raise InputError(
            f"{path}: the tokenizer's ids go up to {largest}, but the model's vocab_size is {config.vocab_size}:"
            " copy the files of the model's own tokenizer (to one without [MASK], a [MASK] is appended)"
        )
    if config.vocab_size - (largest + 1) >= PADDED_BY:
        note(
            f"{path}: the tokenizer has {largest + 1} tokens, and the model's word table {config.vocab_size}"
            " rows: if its files are cut short, copy those of the model's own"
        )
    if config.family.positions_after_padding and tokenizer.pad_token_id != config.pad_token_id:
        raise InputError(
            f"{path}: the tokenizer pads with the id {tokenizer.pad_token_id}, but config.json has the pad_token_id"
            f" {config.pad_token_id}, from which positions count: copy the files of the model's own tokenizer"
        )
    length = sentence_length(path) if config.embedding is not None else None
    length = tokenizer.model_max_length if length is None else length
    if isinstance(length, bool) or not isinstance(length, int | float) or not MIN_LENGTH <= length < float("inf"):
        raise InputError(f"{path}: model_max_length is {length!r}; it must be a number, at least {MIN_LENGTH}")
    tokenizer.model_max_length = int(length)
    put_prompt(tokenizer, "" if config.embedding is None else config.embedding.prompt)
    return tokenizer


def from_files(path: Path, **hints: Any) -> Any:
    """The tokenizer that `transformers` loads from a directory. It may raise any error."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # "PyTorch was not found": it is not needed
    from transformers import AutoTokenizer
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns about a `model_type` that only this package has
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False, **hints)
    finally:
        logging.set_verbosity(verbosity)


def _hints(path: Path, config: BertConfig) -> dict[str, Any]:
    """Arguments for `transformers` if no file names the class of the tokenizer, as in directories of 2019."""
    hf, settings, described = (
        read_json(path / name) if (path / name).is_file() else {}
        for name in ("config.json", "tokenizer_config.json", "tokenizer.json")
    )
    parts = [part for part in (hf, settings) if isinstance(part, dict)]
    is_named = any(part.get(name) for part in parts for name in ("model_type", "tokenizer_class"))
    hints: dict[str, Any] = {} if is_named else {"tokenizer_type": config.model_type}
    if isinstance(settings, dict) and "do_lower_case" in settings:
        return hints
    if not described:
        _note_capitals(path)
    elif hints and isinstance(described, dict) and isinstance(described.get("normalizer"), dict):
        hints["do_lower_case"] = described["normalizer"].get("lowercase") is not False
    return hints


def _note_capitals(path: Path) -> None:
    """Print a note that texts are lower-cased, as in `transformers`, if the vocabulary has many capital letters."""
    if not (path / "vocab.txt").is_file():
        return
    tokens = (path / "vocab.txt").read_text("utf-8", "replace").split()
    if sum(token != token.lower() and token[0] not in "[<" for token in tokens) > len(tokens) / 20:
        note(
            f"{path}: texts are lower-cased, as no tokenizer_config.json says otherwise, but vocab.txt has"
            " capital letters: if the model was trained on them, write"
            ' {"do_lower_case": false} into tokenizer_config.json'
        )


def rebuilt(tokenizer: Any, described: dict[str, Any], config: BertConfig) -> Any:
    """The tokenizer with a new `tokenizer.json`, whose content is `described`, and with its other settings.

    Raises:
        InputError: as `load_tokenizer`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        tokenizer.save_pretrained(path)
        for file in path.iterdir():
            if file.name not in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
                file.unlink()  # the old vocabulary in another form
        (path / "tokenizer.json").write_text(json.dumps(described, ensure_ascii=False), "utf-8")
        settings = read_json(path / "tokenizer_config.json")
        settings.pop("added_tokens_decoder", None)  # it has the old ids
        (path / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
        return load_tokenizer(path, config)


def trained_length(tokenizer: Any, config: BertConfig) -> int:
    """The max_length of a model's training, in tokens, as its tokenizer says; at most its number of positions."""
    return max(MIN_LENGTH, min(tokenizer.model_max_length, config.max_tokens))


def trained_template(tokenizer: Any) -> tuple[str, ...]:
    """The text templates of a model's training, as its tokenizer says; () if there are none. Prints a note if any."""
    template = tuple(tokenizer.init_kwargs.get(TEMPLATE, ()))
    if template:
        note(
            f"texts are made as in the model's training, by --text-template {shlex.join(template)};"
            " --text-columns names other texts"
        )
    return template


def keep_text_template(tokenizer: Any, template: tuple[str, ...]) -> None:
    """Store the text templates in the tokenizer, so that they are saved with it."""
    tokenizer.init_kwargs.pop(TEMPLATE, None)
    if template:
        tokenizer.init_kwargs[TEMPLATE] = [*template]


def put_prompt(tokenizer: Any, prompt: str) -> None:
    """Store in the tokenizer the prompt that is put before every text of an embedding model; "" for none."""
    tokenizer.prompt_of_texts = prompt


def prompt_of(tokenizer: Any) -> str:
    """The prompt of `put_prompt`. The tokenizer itself does not add it to texts; the code for vectors does."""
    return getattr(tokenizer, "prompt_of_texts", "")


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """The sha256 of all that determines a tokenizer's ids, including the prompt before every text."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # The backend keeps truncation and padding of the last call. They do not belong to the fingerprint.
    for transient in ("truncation", "padding"):
        backend.pop(transient, None)
    if tokenizer.truncation_side != "right":
        backend["truncation_side"] = tokenizer.truncation_side
    if prompt := prompt_of(tokenizer):
        backend["prompt"] = prompt
    return hashlib.sha256(json.dumps(backend, sort_keys=True).encode()).hexdigest()


def ids_in(tokenizer: Any, larger: Any) -> np.ndarray | None:
    """The ids of a tokenizer's pieces in a larger tokenizer's vocabulary, int [v].

    None if the larger one lacks a piece, or the two split texts into words differently or have different prompts.
    """
    descriptions = [json.loads(each.backend_tokenizer.to_str()) for each in (tokenizer, larger)]
    models = [described["model"] for described in descriptions]
    alike = all(
        first.get(part) == second.get(part)
        for (first, second), parts in (
            (descriptions, ("normalizer", "pre_tokenizer")),
            (models, ("type", "unk_token", "continuing_subword_prefix", "byte_fallback")),
        )
        for part in parts
    )
    ids, pieces = larger.get_vocab(), all_tokens(tokenizer)
    alike = alike and prompt_of(tokenizer) == prompt_of(larger)
    if not alike or tokenizer.truncation_side != larger.truncation_side or not ids.keys() >= set(pieces):
        return None
    return np.array([ids[piece] for piece in pieces])


def all_tokens(tokenizer: Any) -> list[str]:
    """The tokens by id; "" for an id without a token, which exists if a vocab.txt holds a token twice."""
    ids = tokenizer.get_vocab()
    tokens = [""] * (max(ids.values()) + 1)
    for token, i in ids.items():
        tokens[i] = token
    return tokens


def whole_words(tokenizer: Any, after_space: bool = True) -> np.ndarray:
    """Which ids of a vocabulary are whole words: bool [v], False for special tokens, unused tokens and later pieces.

    Args:
        tokenizer: a tokenizer with a Rust backend.
        after_space: for vocabularies whose tokens include the space before a word. True: words are the tokens with
            the space. False: words are the tokens without it that are also in the vocabulary with it. (Tokens without
            it stand at the beginning of a text, or are later pieces.)
    """
    special = {"", *tokenizer.all_special_tokens}
    tokens = all_tokens(tokenizer)
    space = frame_of(tokenizer).space
    if not space:
        return np.array(
            [t not in special and not t.startswith("##") and not t.startswith("[unused") for t in tokens], bool
        )
    words = {t for t in tokens if t.startswith(space) and t != space} - special
    return np.array([(t if after_space else space + t) in words for t in tokens], bool)


def write_words(tokenizer: Any, frame: Frame, tokens: Sequence[str]) -> str:
    """The text of the tokens of one or more words, without the space before it."""
    if frame.space:
        return tokenizer.backend_tokenizer.decoder.decode([*tokens]).removeprefix(" ")
    return " ".join(tokens).replace(" ##", "")
