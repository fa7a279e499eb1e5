"""`transformers` reads a tokenizer that was saved here as it was used here, or a warning says that it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import WORDS, family_tokenizer, make_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

import tinybert_jax as tb
from tinybert_jax.data.tokens import encode
from tinybert_jax.models.files.directory import save_description

FIRST = ["the Film is very good", "a dull plot " * 20, "bad"]
SECOND = ["a plot", "the film was fine " * 9, "Not dull at all"]


def generic(folder: Path) -> Any:
    """A tokenizer of no class of BERT's, which keeps capitals; `transformers` gives it no token types by default."""
    ids = make_tokenizer(folder).get_vocab()
    backend = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=False)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, ids[name]) for name in ("[CLS]", "[SEP]")],
    )
    names = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def cased(folder: Path) -> Any:
    make_tokenizer(folder)
    return BertTokenizer(vocab=str(next(folder.glob("vocab*"))), do_lower_case=False)


def cut_at_the_left(folder: Path) -> Any:
    tokenizer = make_tokenizer(folder)
    tokenizer.truncation_side = "left"
    return tokenizer


TOKENIZERS = {
    "bert": ("bert", make_tokenizer),
    "cased": ("bert", cased),
    "left": ("bert", cut_at_the_left),
    "generic": ("bert", generic),
    "distilbert": ("distilbert", make_tokenizer),
    "roberta": ("roberta", lambda folder: family_tokenizer("roberta", WORDS)),
    "xlm-roberta": ("xlm-roberta", lambda folder: family_tokenizer("xlm-roberta", WORDS)),
}


def described(name: str, folder: Path, positions: int = 40) -> tuple[tb.BertConfig, Any]:
    """A config and a tokenizer of TOKENIZERS, saved in the folder."""
    family, make = TOKENIZERS[name]
    tokenizer = make(folder)
    pad = tokenizer.pad_token_id
    sizes = {"bert": {}, "distilbert": {"type_vocab_size": 0}}.get(
        family, {"type_vocab_size": 1, "pad_token_id": pad, "max_position_embeddings": positions + pad + 1}
    )
    sizes = {"max_position_embeddings": positions, "vocab_size": max(tokenizer.get_vocab().values()) + 1} | sizes
    config = tb.BertConfig(model_type=family, hidden_size=8, num_attention_heads=2, num_hidden_layers=1, **sizes)
    save_description(folder / "saved", config, {"encoder": {}}, tokenizer)
    return config, tokenizer


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("limit", [None, 16])
def test_transformers_reads_the_rows_that_were_used(
    name: str, limit: int | None, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config, tokenizer = described(name, tmp_path)
    if limit:
        tokenizer.model_max_length = limit
        save_description(tmp_path / "saved", config, {"encoder": {}}, tokenizer)
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for columns in ([FIRST], [FIRST, SECOND]):
        used = encode(list(zip(*columns, strict=True)), tokenizer, limit or config.max_tokens)
        again = saved(*columns, truncation=True, padding=True, return_tensors="np")
        assert list(again) == saved.model_input_names
        types = again.get("token_type_ids", 0 * again["input_ids"])
        for row, (start, stop) in enumerate(zip(used.offsets[:-1], used.offsets[1:], strict=True)):
            real = again["attention_mask"][row] == 1
            assert again["input_ids"][row][real].tolist() == used.input_ids[start:stop].tolist()
            if config.type_vocab_size:
                assert (types[row][real] == 0).sum() == used.pair_starts[row]
    assert not capsys.readouterr().err


def test_the_files_cut_texts_where_the_model_ends_also_without_transformers(tmp_path: Path) -> None:
    described("bert", tmp_path)
    assert json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())["model_max_length"] == 40
    backend = Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json"))
    assert len(backend.encode("the film " * 99).ids) == 40
    assert len(backend.encode("the film").ids) == 4, "no padding"


def test_a_tokenizer_that_is_read_in_another_way_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config, tokenizer = described("bert", tmp_path)
    tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)  # but do_lower_case is True
    save_description(tmp_path / "saved", config, {"encoder": {}}, tokenizer)
    assert "`transformers` gives the text" in capsys.readouterr().err
