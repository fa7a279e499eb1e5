"""A tokenizer that does not fit its model is refused with a line that says why."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from conftest import TINY, rest_long, write_model

import tinybert_jax as tb


def test_vocabulary_without_special_tokens_is_refused(directory: Path) -> None:
    config, _ = tb.load_hf(directory)
    (directory / "tokenizer.json").unlink()
    (directory / "vocab.txt").write_text("\n".join(f"word{i}" for i in range(config.vocab_size)))
    with pytest.raises(tb.InputError, match=r"vocabulary has no pad token, which is to be '\[PAD\]': copy"):
        tb.load_tokenizer(directory, config)


@pytest.mark.parametrize("lost", ["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
def test_a_special_token_gets_no_id_that_the_model_was_not_trained_on(directory: Path, lost: str) -> None:
    config, _ = tb.load_hf(directory)
    vocabulary = (directory / "vocab.txt").read_text().split()
    (directory / "tokenizer.json").unlink()
    (directory / "vocab.txt").write_text("\n".join(token for token in vocabulary if token != lost))
    with pytest.raises(tb.InputError, match=rf"has no {lost[1:-1].lower()} token, which is to be '\{lost}': copy"):
        tb.load_tokenizer(directory, config)


def test_a_token_that_comes_twice_does_not_hide_ids_outside_the_embedding(directory: Path) -> None:
    config, _ = tb.load_hf(directory)
    vocabulary = (directory / "vocab.txt").read_text().split()
    (directory / "tokenizer.json").unlink()
    (directory / "vocab.txt").write_text("\n".join([*vocabulary[:90], *["the"] * 20]))
    with pytest.raises(tb.InputError, match="ids go up to 109, but the model's vocab_size is 99"):
        tb.load_tokenizer(directory, config)


@pytest.mark.parametrize(("spare", "is_noted"), [(127, False), (128, True)])
def test_a_tokenizer_of_far_fewer_tokens_than_the_word_table_has_rows_is_noted(
    spare: int, is_noted: bool, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table is padded to a multiple of at most 128."""
    config, _ = tb.load_hf(directory)
    tb.load_tokenizer(directory, dataclasses.replace(config, vocab_size=config.vocab_size + spare))
    note = f"note: {directory}: the tokenizer has 99 tokens, and the model's word table 227 rows: if its files are cut"
    assert capsys.readouterr().err.startswith(note) == is_noted


def test_a_tokenizer_without_a_rust_backend_is_refused(directory: Path) -> None:
    config, _ = tb.load_hf(directory)
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "CanineTokenizer"}))
    with pytest.raises(tb.InputError, match=r"CanineTokenizer has no Rust backend, which is needed: give"):
        tb.load_tokenizer(directory, config)


@pytest.mark.parametrize("length", ["512", -1, True, [8], float("nan")])
def test_a_tokenizer_whose_longest_text_has_no_length_is_refused(directory: Path, length: object) -> None:
    config, _ = tb.load_hf(directory)
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": length}))
    with pytest.raises(tb.InputError, match=r"model_max_length is .*; it must be a number, at least 8"):
        tb.load_tokenizer(directory, config)


def test_missing_tokenizer_files_are_named(directory: Path) -> None:
    config, _ = tb.load_hf(directory)
    for name in ("tokenizer.json", "vocab.txt"):
        (directory / name).unlink()
    with pytest.raises(tb.InputError, match=r"no tokenizer\.json or vocab\.txt or vocab\.json"):
        tb.load_tokenizer(directory, config)


def of_2019(directory: Path, **config: object) -> Path:
    """As BERTs were saved in 2019: no `model_type`, and nothing of the tokenizer but its vocabulary."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).unlink()
    path = directory / "config.json"
    hf = {name: value for name, value in json.loads(path.read_text()).items() if name != "model_type"}
    path.write_text(json.dumps(hf | config))
    return directory


TEXTS = ["A very good Film, not dull!", "the plot \u00e9"]


def ids(directory: Path) -> list[list[int]]:
    return tb.load_tokenizer(directory, tb.load_hf(directory)[0])(TEXTS)["input_ids"]


@pytest.mark.parametrize("architectures", [None, ["BertForSequenceClassification"], ["TinyBertForPreTraining"]])
def test_a_vocabulary_alone_is_a_tokenizer(directory: Path, architectures: list[str] | None) -> None:
    expected = ids(directory)
    assert ids(of_2019(directory, architectures=architectures)) == expected


def test_capitals_in_a_vocabulary_are_noted_where_nothing_says_that_texts_keep_theirs(
    directory: Path, capsys: pytest.CaptureFixture
) -> None:
    of_2019(directory)
    tokens = (directory / "vocab.txt").read_text().split()
    (directory / "vocab.txt").write_text("\n".join(token if token[0] == "[" else token.upper() for token in tokens))
    ids(directory)
    assert 'write {"do_lower_case": false} into tokenizer_config.json' in capsys.readouterr().err
    (directory / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert ids(directory)[0][1] == tokens.index("a"), "the capital A"
    assert not capsys.readouterr().err


def test_a_tokenizer_file_without_its_config_says_what_is_lower_cased(directory: Path) -> None:
    described = json.loads((directory / "tokenizer.json").read_text())
    of_2019(directory)
    for lower in (True, False):
        described["normalizer"]["lowercase"] = lower
        (directory / "tokenizer.json").write_text(json.dumps(described))
        unknown = described["model"]["vocab"]["[UNK]"]
        assert (unknown in ids(directory)[0]) is not lower


@pytest.mark.parametrize("blank", rest_long(["\n", "\n\n\n", "  \n"], ["\n\n\n"]))
@pytest.mark.parametrize("form", ["vocab.txt", "tokenizer.json"])
def test_blank_lines_at_the_end_of_a_vocabulary_are_no_tokens(
    directory: Path, tmp_path: Path, form: str, blank: str
) -> None:
    expected, config = ids(directory), tb.load_hf(directory)[0]
    if form == "vocab.txt":
        (directory / "tokenizer.json").unlink()
        with (directory / "vocab.txt").open("a") as vocabulary:
            vocabulary.write(blank)
    else:
        described = json.loads((directory / "tokenizer.json").read_text())
        described["model"]["vocab"] |= {line: config.vocab_size + i for i, line in enumerate(blank.split("\n"))}
        (directory / "tokenizer.json").write_text(json.dumps(described))
    assert ids(directory) == expected
    tokenizer = tb.load_tokenizer(directory, config)
    assert max(tokenizer.get_vocab().values()) < config.vocab_size
    tb.save_hf(tmp_path / "copy", *tb.load_hf(directory), tokenizer)
    assert ids(tmp_path / "copy") == expected


def test_a_roberta_of_2019_has_its_own_tokenizer(tmp_path: Path) -> None:
    from conftest import family_tokenizer

    directory = Path(shutil.copytree(TINY.parent / "tiny-roberta", tmp_path / "roberta"))
    tokenizer = family_tokenizer("roberta", ["a", "film"])
    tokenizer.save_pretrained(tmp_path / "saved")
    model = json.loads((tmp_path / "saved" / "tokenizer.json").read_text())["model"]
    (directory / "vocab.json").write_text(json.dumps(model["vocab"]))
    (directory / "merges.txt").write_text("\n".join(" ".join(merge) for merge in model["merges"]))
    hf = json.loads((directory / "config.json").read_text())
    del hf["model_type"]
    hf |= {"vocab_size": len(model["vocab"]), "pad_token_id": tokenizer.pad_token_id}
    config = tb.BertConfig.from_hf(hf)
    (directory / "config.json").write_text(json.dumps(hf))
    loaded = tb.load_tokenizer(directory, config)
    assert loaded(" a film", " film")["input_ids"] == tokenizer(" a film", " film")["input_ids"]


def test_a_vocabulary_that_the_tokenizers_class_does_not_read_is_refused(tmp_path: Path) -> None:
    """Every word would be unknown."""
    directory = write_model(tmp_path / "bert", family="xlm-roberta", hidden_size=16, num_hidden_layers=1)
    (directory / "tokenizer.json").unlink()
    shutil.copy(TINY / "vocab.txt", directory)
    with pytest.raises(tb.InputError, match="XLMRobertaTokenizer, finds no words in the files there: copy"):
        tb.load_tokenizer(directory, tb.load_hf(directory)[0])
    (directory / "vocab.txt").unlink()
    (directory / "sentencepiece.bpe.model").write_bytes(b"\n\x0e\n\x05<unk>")
    with pytest.raises(tb.InputError, match=r"directory \(sentencepiece.bpe.model alone is not read: AutoTokenizer"):
        tb.load_tokenizer(directory, tb.load_hf(directory)[0])
