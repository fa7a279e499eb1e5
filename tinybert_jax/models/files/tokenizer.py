"""The tokenizer of a Hugging Face directory, and what is asked of it."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinybert_jax.errors import InputError, first_line
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.files.foreign import HEAD, foreign_kind
from tinybert_jax.models.files.frame import Frame, frame_of
from tinybert_jax.models.files.hub import TOKENIZER_FILES, resolve
from tinybert_jax.models.files.sentence import sentence_length
from tinybert_jax.models.files.weights import read_json
from tinybert_jax.settings.choices import MIN_LENGTH

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


TEMPLATE = "text_template"  # in tokenizer_config.json
PADDED_BY = 128  # rows: a word table that is padded to a multiple of 8, 64 or 128 has fewer to spare


def load_tokenizer(directory: str | Path, config: BertConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face directory, checked against the model's vocabulary.

    A note tells of a word table with so many rows to spare that the tokenizer's files may be cut short.

    Raises:
        InputError: there are no tokenizer files, a special token is missing from the vocabulary, an id lies outside
            the embedding, the length of a text is limited to what is no length, or there is no Rust backend.
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
        if not (path / "tokenizer.json").is_file():  # the only form that every version of transformers reads
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
        # of blank lines at the end of a vocab.txt; no text has such a token
        described = json.loads(tokenizer.backend_tokenizer.to_str())
        if isinstance(pieces := described["model"]["vocab"], dict):
            described["model"]["vocab"] = {token: i for token, i in pieces.items() if token not in blank}
            return rebuilt(tokenizer, described, config)
    # Not their number: where a vocab.txt holds a token twice, ids are left out.
    largest = max(tokenizer.get_vocab().values())
    if largest >= config.vocab_size:
        raise InputError(
            f"{path}: the tokenizer's ids go up to {largest}, but the model's vocab_size is {config.vocab_size}:"
            " copy the files of the model's own tokenizer (to one without [MASK], a [MASK] is appended)"
        )
    if config.vocab_size - (largest + 1) >= PADDED_BY:
        print(
            f"note: {path}: the tokenizer has {largest + 1} tokens, and the model's word table {config.vocab_size}"
            " rows: if its files are cut short, copy those of the model's own",
            file=sys.stderr,
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
    """What `transformers` makes of a directory, with whatever error it raises."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # "PyTorch was not found": it is not needed
    from transformers import AutoTokenizer
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns of a `model_type` that is ours alone
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False, **hints)
    finally:
        logging.set_verbosity(verbosity)


def _hints(path: Path, config: BertConfig) -> dict[str, Any]:
    """What to tell `transformers` of a directory of 2019, in which no file names the class of the tokenizer."""
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
    """Tell that texts are lower-cased, as in `transformers`, if the vocabulary looks as if they should not be."""
    if not (path / "vocab.txt").is_file():
        return
    tokens = (path / "vocab.txt").read_text("utf-8", "replace").split()
    if sum(token != token.lower() and token[0] not in "[<" for token in tokens) > len(tokens) / 20:
        print(
            f"note: {path}: texts are lower-cased, as no tokenizer_config.json says otherwise, but vocab.txt has"
            " capital letters: if the model was trained on them, write"
            ' {"do_lower_case": false} into tokenizer_config.json',
            file=sys.stderr,
        )


def rebuilt(tokenizer: Any, described: dict[str, Any], config: BertConfig) -> Any:
    """The tokenizer of a new `tokenizer.json`, with all its other settings.

    Raises:
        InputError: as `load_tokenizer`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        tokenizer.save_pretrained(path)
        for file in path.iterdir():
            if file.name not in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
                file.unlink()  # a vocabulary in another form
        (path / "tokenizer.json").write_text(json.dumps(described, ensure_ascii=False), "utf-8")
        settings = read_json(path / "tokenizer_config.json")
        settings.pop("added_tokens_decoder", None)  # by their old ids
        (path / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
        return load_tokenizer(path, config)


def trained_length(tokenizer: Any, config: BertConfig) -> int:
    """Tokens of the longest text that a model was trained on, as its tokenizer says; no more than its positions."""
    return max(MIN_LENGTH, min(tokenizer.model_max_length, config.max_tokens))


def trained_template(tokenizer: Any) -> tuple[str, ...]:
    """The templates of the texts that a model was trained on, as its tokenizer says, with a note; (): none."""
    template = tuple(tokenizer.init_kwargs.get(TEMPLATE, ()))
    if template:
        print(
            f"note: texts are made as in the model's training, by --text-template {shlex.join(template)};"
            " --text-columns names other texts",
            file=sys.stderr,
        )
    return template


def keep_text_template(tokenizer: Any, template: tuple[str, ...]) -> None:
    """Have the tokenizer say, where it is saved, which templates made the texts."""
    tokenizer.init_kwargs.pop(TEMPLATE, None)
    if template:
        tokenizer.init_kwargs[TEMPLATE] = [*template]


def put_prompt(tokenizer: Any, prompt: str) -> None:
    """Have the tokenizer say which prompt stands before every text of an embedding model; "": none."""
    tokenizer.prompt_of_texts = prompt


def prompt_of(tokenizer: Any) -> str:
    """The prompt that stands before every text of an embedding model. Only what makes vectors puts it there."""
    return getattr(tokenizer, "prompt_of_texts", "")


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """sha256 of all that determines a tokenizer's ids, the prompt before every text included."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # The last call's truncation and padding stay in the backend: a used tokenizer would look like another one.
    for transient in ("truncation", "padding"):
        backend.pop(transient, None)
    if tokenizer.truncation_side != "right":
        backend["truncation_side"] = tokenizer.truncation_side
    if prompt := prompt_of(tokenizer):
        backend["prompt"] = prompt
    return hashlib.sha256(json.dumps(backend, sort_keys=True).encode()).hexdigest()


def ids_in(tokenizer: Any, larger: Any) -> np.ndarray | None:
    """The ids that a tokenizer's pieces have in a larger vocabulary, int [v].

    None: the larger one lacks a piece, or the two do not split texts into words alike, or have unlike prompts.
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
    """The tokens by id; "" for an id that no token has, as where a vocab.txt holds a token twice."""
    ids = tokenizer.get_vocab()
    tokens = [""] * (max(ids.values()) + 1)
    for token, i in ids.items():
        tokens[i] = token
    return tokens


def whole_words(tokenizer: Any, after_space: bool = True) -> np.ndarray:
    """Which ids of a vocabulary are words: bool [v], False for special and unused tokens and for later pieces.

    Args:
        tokenizer: with a Rust backend.
        after_space: of tokens that hold the space before them, whether those with it are meant, or those without: the
            latter also begin a text, and can be later pieces. Such a token is a word if it is one after a space, too.
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
    """The text of the tokens of one word or more, without the space before it."""
    if frame.space:
        return tokenizer.backend_tokenizer.decoder.decode([*tokens]).removeprefix(" ")
    return " ".join(tokens).replace(" ##", "")
