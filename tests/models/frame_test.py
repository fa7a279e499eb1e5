"""A tokenizer is asked once for the special tokens around texts, their types, and how words are told apart."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import family_tokenizer, make_tokenizer, write_model
from tokenizers import processors

import tinybert_jax as tb
from tinybert_jax.models.files.frame import Frame, frame_of
from tinybert_jax.models.files.tokenizer import all_tokens, whole_words, write_words

TRANSFORMERS = tuple(map(int, importlib.metadata.version("transformers").split(".")[:2]))
TEXT = "we bought a bag of crisp chips , and it was very good !".split()
FRAMES = {
    "bert": Frame((2,), (3,), (3,), True, ""),
    "roberta": Frame((0,), (2, 2), (2,), False, "\u0120"),
    "xlm-roberta": Frame((0,), (2, 2), (2,), False, "\u2581"),
}


@pytest.fixture(scope="module", params=FRAMES)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if request.param == "bert":
        made = make_tokenizer(tmp_path_factory.mktemp("vocab"), [*TEXT, "##s"])
    else:
        made = family_tokenizer(request.param, TEXT)
    made.family = request.param
    return made


def test_the_frame_is_that_of_the_family(tokenizer: Any) -> None:
    assert frame_of(tokenizer) == FRAMES[tokenizer.family]


@pytest.mark.parametrize("texts", [("a bag of chips",), ("a bag", "it was good !"), ("", "a"), ("a", ""), ("",)])
def test_texts_are_framed_as_the_tokenizer_frames_them(tokenizer: Any, texts: tuple[str, ...]) -> None:
    frame = frame_of(tokenizer)
    # in a batch, because an empty second text alone is taken for none
    encoded = {name: rows[0] for name, rows in tokenizer(*([t] for t in texts), return_token_type_ids=True).items()}
    parts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    ids, pair_start = frame.put(*parts)
    assert ids == encoded["input_ids"]
    assert len(ids) == sum(map(len, parts)) + frame.size(len(texts))
    assert [int(i >= pair_start) for i in range(len(ids))] == encoded["token_type_ids"]


def test_the_last_call_of_the_tokenizer_does_not_matter(tokenizer: Any) -> None:
    tokenizer("a bag of chips", truncation=True, max_length=3, padding="max_length")
    assert frame_of(tokenizer) == FRAMES[tokenizer.family]


def test_a_pair_that_is_no_text_beside_a_text_is_refused() -> None:
    tokenizer = family_tokenizer("xlm-roberta", TEXT)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A $B </s> </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    with pytest.raises(tb.InputError, match=r"around a pair as around a text: take a BERT's or a RoBERTa's$"):
        frame_of(tokenizer)


def test_words_are_the_tokens_that_write_them_and_nothing_else(tokenizer: Any) -> None:
    frame, tokens = frame_of(tokenizer), all_tokens(tokenizer)
    words = {
        write_words(tokenizer, frame, [t]) for t, word in zip(tokens, whole_words(tokenizer), strict=True) if word
    }
    assert {"bag", "chips", "good"} <= words
    assert not words & {*tokenizer.all_special_tokens, "", "##s", frame.space}
    for word in ("chips", "bags"):
        first, both = (tokenizer.tokenize(text) for text in ("a", f"a {word}"))
        assert write_words(tokenizer, frame, both[len(first) :]) == word


def test_bytes_of_a_letter_are_written_together() -> None:
    tokenizer = family_tokenizer("roberta", ["a"])
    tokens = tokenizer.tokenize(" caf\u00e9")
    assert len(tokens) > 4
    assert write_words(tokenizer, frame_of(tokenizer), tokens) == "caf\u00e9"


def test_without_a_space_a_word_is_a_token_that_is_one_with_a_space_too() -> None:
    tokenizer = family_tokenizer("roberta", ["bag", "bagel", "a"])
    tokens = all_tokens(tokenizer)
    spaced, bare = (
        {tokens[i] for i in whole_words(tokenizer, after_space).nonzero()[0]} for after_space in (True, False)
    )
    assert {"\u0120bag", "\u0120bagel", "\u0120a"} <= spaced
    assert all(token.startswith("\u0120") for token in spaced)
    assert bare == {token for token in tokens if f"\u0120{token}" in spaced}
    assert "a" in bare


def test_a_tokenizer_of_another_padding_is_refused_where_positions_count_from_it(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8}
    directory = write_model(tmp_path / "model", family="roberta", pad_token_id=3, **sizes)
    with pytest.raises(tb.InputError, match=r"pads with the id 1, but config.json has the pad_token_id 3,"):
        tb.load_tokenizer(directory, tb.load_hf(directory)[0])


def write_merges(tmp_path: Path) -> tuple[Any, tb.BertConfig]:
    """The files of a RoBERTa that has no tokenizer.json; its tokenizer and config."""
    tokenizer = family_tokenizer("roberta", TEXT)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(merge) for merge in model["merges"])]))
    config = tb.BertConfig(model_type="roberta", vocab_size=len(tokenizer), pad_token_id=1)
    (tmp_path / "config.json").write_text(json.dumps(config.to_hf()))
    return tokenizer, config


@pytest.mark.skipif(TRANSFORMERS < (5, 23), reason="transformers 5.8 to 5.12 do not read such files; 5.23 does")
def test_a_vocabulary_in_json_and_a_file_of_merges_are_read(tmp_path: Path) -> None:
    tokenizer, config = write_merges(tmp_path)
    loaded = tb.load_tokenizer(tmp_path, config)
    assert loaded("a bag")["input_ids"] == tokenizer("a bag")["input_ids"]


def test_a_tokenizer_without_tokenizer_json_that_is_not_read_is_told_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def from_files(*_: object, **__: object) -> None:
        raise Exception("Deprecated in 0.9.0")  # as the Rust backend does behind transformers 5.8

    _, config = write_merges(tmp_path)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", from_files)
    with pytest.raises(tb.InputError, match=r"in 0.9.0\): copy .* anew, with tokenizer.json, or update transformers"):
        tb.load_tokenizer(tmp_path, config)
