"""Write a tokenizer's files, so that `transformers` makes the same tokens: types, length, case, special tokens."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from tinybert_jax.errors import InputError, first_line
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.files.frame import frame_of
from tinybert_jax.models.files.tokenizer import all_tokens, from_files, trained_length
from tinybert_jax.models.files.weights import read_json

WORDS = 800  # in the longest text that is compared: more than the positions of most models
TEXTS = ("The caf\u00e9's na\u00efve Plot, NOT dull (2.5/5)!", "\u4e2d\u6587 \u00dcber\tx\u200b\n", "", " ")


def save_tokenizer(path: Path, config: BertConfig, tokenizer: Any) -> None:
    """Write the tokenizer's files beside a model. Prints a warning if `transformers` makes other tokens from them.

    The saved tokenizer truncates texts at its length, or at the model's positions if these are fewer. It returns token
    types if the model has been given any.
    """
    if not hasattr(tokenizer, "backend_tokenizer"):  # not a tokenizer that this package can use
        tokenizer.save_pretrained(path)
        return
    length = trained_length(tokenizer, config)
    # replaces the truncation and padding of the last call
    tokenizer.backend_tokenizer.enable_truncation(
        length, strategy="longest_first", direction=tokenizer.truncation_side
    )
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(path)
    settings = read_json(path / "tokenizer_config.json") | {"model_max_length": length}
    names = ["input_ids", "token_type_ids", "attention_mask"]
    with contextlib.suppress(InputError):  # not a tokenizer that this package can use
        if not config.type_vocab_size or not frame_of(tokenizer).has_types:
            names.remove("token_type_ids")
        if names != type(tokenizer).model_input_names:
            settings["model_input_names"] = names
    (path / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
    try:
        difference = _difference(from_files(path), tokenizer, length, "token_type_ids" in names)
    except Exception as error:  # the Rust backend raises bare Exception
        difference = f"cannot read the tokenizer ({first_line(error)})"
    if difference:
        print(f"warning: {path}: `transformers` {difference}", file=sys.stderr)


def _difference(saved: Any, tokenizer: Any, length: int, has_types: bool) -> str | None:
    """How the saved tokenizer differs from the one in use, on some texts and pairs; None if it does not."""
    tokens = [token for token in (token.lstrip("#\u0120\u2581") for token in all_tokens(tokenizer)) if token.isalpha()]
    words = tokens[:: 1 + len(tokens) // WORDS] * (1 + WORDS // (1 + len(tokens)))
    special = f"a {tokenizer.sep_token} {tokenizer.mask_token} b"
    texts = [*TEXTS, special, " ".join(words), " ".join(words[:9]).title()]
    for columns in ((texts,), (texts, texts[::-1])):
        used = tokenizer(*columns, truncation="longest_first", max_length=length).encodings
        again = saved(*columns, truncation=True)
        types = again.get("token_type_ids") or [[0] * len(ids) for ids in again["input_ids"]]
        for row, encoding in enumerate(used):
            text = " | ".join(column[row] for column in columns)
            if encoding.ids != again["input_ids"][row]:
                return f"gives the text {text!r:.60} other tokens than were used: save the tokenizer that made them"
            if has_types and encoding.type_ids != types[row]:
                return f"gives the pair {text!r:.60} other token types than were used"
    return None
