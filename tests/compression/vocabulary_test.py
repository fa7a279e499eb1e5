"""A smaller vocabulary keeps the tokens of the texts that it was made for, in every kind of tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from conftest import BAD, GOOD, NEUTRAL, distillation, family_tokenizer, logged, rest_long, write_model

import tinybert_jax as tb
from tinybert_jax.compression.vocabulary import ids_of_files, smaller_vocabulary
from tinybert_jax.data.tokens import encode
from tinybert_jax.models.files.tokenizer import ids_in
from tinybert_jax.teachers.teacher import Teacher, TeacherModel, with_pieces_of

TEXTS = ["we bought lovely chips", "the stale chips was burnt", "a bag"]
OTHER = ["it was tasty and rather bland"]


@pytest.fixture(params=rest_long(["bert", "roberta", "xlm-roberta", "distilbert"], ["bert"]))
def model(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[tb.BertConfig, Any, Any]:
    """A model with a masked-LM head, and its tokenizer."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16}
    letters = tuple(dict.fromkeys("".join((*NEUTRAL, *GOOD, *BAD))))
    words = (*letters, *(f"##{letter}" for letter in letters)) if "roberta" not in request.param else ("!",)
    path = write_model(tmp_path / "model", family=request.param, words=words, **sizes)
    config, params = tb.load_hf(path)
    head = tb.init_params(tb.BertForMaskedLM(config), jax.random.key(1))
    params = {"encoder": params["encoder"], "cls": head["cls"]}
    params["cls"]["predictions"]["bias"] = jnp.arange(config.vocab_size, dtype=jnp.float32)
    return config, params, tb.load_tokenizer(path, config)


def pieces(tokenizer: Any, text: str) -> list[str]:
    return tokenizer(text).encodings[0].tokens


def test_the_texts_have_the_same_tokens_and_the_model_the_same_outputs(
    model: tuple[tb.BertConfig, Any, Any], tmp_path: Path
) -> None:
    config, params, tokenizer = model
    rows = encode([(text,) for text in TEXTS], tokenizer, 24)
    before = {text: pieces(tokenizer, text) for text in TEXTS + OTHER}
    smaller, fewer, new = smaller_vocabulary(config, params, tokenizer, rows.input_ids.tolist())
    assert smaller.vocab_size < config.vocab_size
    for text in TEXTS:
        assert pieces(new, text) == before[text]
    # other texts are cut into smaller pieces of the same letters
    after = pieces(new, OTHER[0])
    assert len(after) > len(before[OTHER[0]])
    assert new.unk_token not in after
    for special in ("pad", "unk", "cls", "sep", "mask"):
        assert getattr(new, f"{special}_token") == getattr(tokenizer, f"{special}_token")
        assert getattr(new, f"{special}_token_id") < smaller.vocab_size
    assert smaller.pad_token_id == new.pad_token_id
    again = encode([(text,) for text in TEXTS], new, 24)
    outputs = []
    for (c, p), tokens in (((config, params), rows), ((smaller, fewer), again)):
        batch = tokens.batch(np.arange(len(TEXTS)), 24)
        arrays = [jnp.asarray(array) for array in batch[:3]]
        outputs.append(tb.BertForMaskedLM(c).apply({"params": p}, *arrays))
    real = batch.attention_mask > 0
    np.testing.assert_array_equal(outputs[0].last_hidden_state[real], outputs[1].last_hidden_state[real])
    # and the masked-LM head has the logits of the same words
    vocabulary, old = new.get_vocab(), tokenizer.get_vocab()
    word = max(vocabulary, key=vocabulary.__getitem__)
    np.testing.assert_allclose(
        outputs[1].logits[real][:, vocabulary[word]], outputs[0].logits[real][:, old[word]], atol=1e-5
    )
    # written and read again, the tokenizer is the same
    tb.save_hf(tmp_path / "saved", smaller, fewer, new)
    saved = tb.load_tokenizer(tmp_path / "saved", smaller)
    for text in TEXTS + OTHER:
        assert pieces(saved, text) == pieces(new, text)
    pair = (TEXTS[0], TEXTS[1])
    assert saved(*pair)["input_ids"] == new(*pair)["input_ids"]
    names = [each.convert_ids_to_tokens(each(*pair)["input_ids"]) for each in (tokenizer, saved)]
    assert names[0] == names[1]


def test_a_teacher_reads_the_ids_of_a_smaller_vocabulary(model: tuple[tb.BertConfig, Any, Any]) -> None:
    config, params, tokenizer = model
    rows = encode([(text,) for text in TEXTS], tokenizer, 24)
    *_, new = smaller_vocabulary(config, params, tokenizer, rows.input_ids.tolist())
    whole = Teacher("teacher", "its files", (), TeacherModel(config, params, tokenizer))
    reading = with_pieces_of(whole, new)
    assert reading.model is not None
    assert reading.fingerprint != whole.fingerprint  # what is cached for other ids is not read
    again = encode([(text,) for text in TEXTS], new, 24)
    assert again.input_ids.tolist() != rows.input_ids.tolist()
    outputs = []
    for (c, p), tokens in (((config, params), rows), ((reading.model.config, reading.model.params), again)):
        arrays = [jnp.asarray(array) for array in tokens.batch(np.arange(len(TEXTS)), 24)[:3]]
        outputs.append(tb.BertForMaskedLM(c).apply({"params": p}, *arrays).last_hidden_state)
    np.testing.assert_array_equal(*outputs)
    # the smaller one lacks pieces of the whole one, and nothing is changed for a teacher's own vocabulary
    assert with_pieces_of(reading, tokenizer) is reading
    assert with_pieces_of(whole, tokenizer) is whole


def test_a_vocabulary_with_other_rules_is_not_a_part() -> None:
    tokenizer = family_tokenizer("bert", (*NEUTRAL, *GOOD, *BAD))
    other = family_tokenizer("bert", (*NEUTRAL, *GOOD))
    ids = ids_in(other, tokenizer)
    assert ids is not None
    assert tokenizer.convert_ids_to_tokens(ids.tolist()) == other.convert_ids_to_tokens(list(range(len(ids))))
    other.backend_tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    assert ids_in(other, tokenizer) is None


@pytest.mark.long
def test_layers_teach_a_student_with_a_smaller_vocabulary(teacher: Path, reviews: Path, tmp_path: Path) -> None:
    source = tb.DataSource(data=str(reviews))
    tb.compress(str(teacher), "classification", source, (tb.Vocabulary(),), tmp_path / "cut")
    losses = []
    for student in (teacher, tmp_path / "cut"):
        stages = (tb.Stage("transformer", epochs=4, schedule="constant"),)
        out = tmp_path / f"run-{student.name}"
        tb.run(distillation(teacher, student, reviews, stages=stages), out)
        losses.append([line["loss"] for line in logged(out) if "loss" in line])
    assert len(losses[0]) > 1
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_the_lines_of_files_count_too(tmp_path: Path) -> None:
    tokenizer = family_tokenizer("roberta", (*NEUTRAL, *GOOD, *BAD))
    (tmp_path / "a.txt").write_text("we bought chips\n")
    (tmp_path / "b.txt").write_text("stale\n\nbland\n")
    ids = ids_of_files((str(tmp_path / "a.txt"), str(tmp_path / "b.txt")), tokenizer)
    assert {tokenizer.convert_tokens_to_ids(piece) for piece in ("Ġbought", "Ġchips")} <= ids
    tokenizer("we bought it", truncation=True, max_length=8, padding="max_length")  # which the backend remembers
    (tmp_path / "long.txt").write_text("the " * 30 + "crisp\n")
    assert tokenizer.convert_tokens_to_ids("Ġcrisp") in ids_of_files((str(tmp_path / "long.txt"),), tokenizer)
    with pytest.raises(tb.InputError, match=r"none\.txt"):
        ids_of_files((str(tmp_path / "none.txt"),), tokenizer)


@pytest.mark.long
def test_a_run_refuses_a_method_that_changes_the_tokens(teacher: Path, reviews: Path, tmp_path: Path) -> None:
    experiment = distillation(teacher, teacher, reviews, compression=(tb.Vocabulary(),))
    with pytest.raises(tb.InputError, match=r"'vocabulary' changes the tokens, .* by `tinybert compress`"):
        tb.run(experiment, tmp_path / "run")


def test_a_compressed_classifier_loads_everywhere(teacher: Path, reviews: Path, tmp_path: Path) -> None:
    source = tb.DataSource(data=str(reviews))
    chain = tb.compress(str(teacher), "classification", source, (tb.Vocabulary(),), tmp_path / "out")
    assert chain[1].scores == chain[0].scores
    assert json.loads((tmp_path / "out/config.json").read_text())["model_type"] == "bert"
    torch = pytest.importorskip("torch")
    import transformers

    kind = transformers.AutoModelForSequenceClassification
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    with torch.inference_mode():
        logits = kind.from_pretrained(tmp_path / "out")(**tokenizer(TEXTS, return_tensors="pt", padding=True)).logits
    predictor = tb.load_predictor(tmp_path / "out")
    expected = predictor.logits(encode([(text,) for text in TEXTS], predictor.tokenizer, 16))
    np.testing.assert_allclose(logits.numpy(), expected, atol=1e-5)


def test_byte_pieces_stay_and_no_id_before_padding_moves() -> None:
    from transformers import PreTrainedTokenizerFast

    vocabulary = [("<s>", 0.0), ("unused", -1.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁a", -1.0)]
    vocabulary += [(f"<0x{i:02X}>", -9.0) for i in range(256)] + [("▁bag", -1.0)]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(vocabulary, unk_id=4, byte_fallback=True))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    special = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=16, **{f"{name}_token": text for name, text in special.items()}
    )
    config = tb.BertConfig(
        vocab_size=300, hidden_size=8, num_attention_heads=2, intermediate_size=8, model_type="roberta", pad_token_id=2
    )
    params = {"encoder": {"embeddings": {"word_embeddings": {"embedding": np.zeros((300, 8), np.float32)}}}}
    used = set(tokenizer("a")["input_ids"])
    smaller, _, new = smaller_vocabulary(config, params, tokenizer, used)
    assert smaller.pad_token_id == 2
    assert "▁bag" not in new.get_vocab()
    assert pieces(new, "é") == pieces(tokenizer, "é")
    assert "<0xC3>" in pieces(new, "é")
