"""A model directory as a function: order kept, pairs and single texts, the same answers as the dev scores."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import tinybert_jax as tb


def test_predictions_come_in_order_whatever_the_lengths_and_batch_size(teacher: Path) -> None:
    texts = ["a lovely bag", "it was awful and very very very very stale", "tasty", "the chips burnt"]
    together = tb.load_predictor(teacher, max_length=16, batch_size=3)(texts)
    alone = [tb.load_predictor(teacher, max_length=16, batch_size=1)([text])[0] for text in texts]
    assert [p.label for p in together] == ["good", "bad", "good", "bad"]
    np.testing.assert_allclose([p.value for p in together], [p.value for p in alone], rtol=1e-5)


def test_probabilities_are_those_of_the_logits(teacher: Path) -> None:
    predictor = tb.load_predictor(teacher, max_length=16)
    prediction = predictor(["a bitter bag"])[0]
    assert prediction.label == "bad"
    assert 0.5 < prediction.value <= 1


def test_no_texts_give_no_predictions(teacher: Path) -> None:
    assert tb.load_predictor(teacher, max_length=16)([]) == []
    with pytest.raises(tb.InputError, match="head is 'encoder'; it must be one of sequence, tokens, span"):
        tb.load_predictor(teacher, head="encoder")


@pytest.mark.parametrize("texts", ["one string", ["a", ("b", "c")]])
def test_rows_that_would_be_misread_are_refused(teacher: Path, texts) -> None:
    with pytest.raises(ValueError, match="give"):
        tb.load_predictor(teacher)(texts)


@pytest.mark.parametrize("texts", [["a", float("nan")], [("a", None)]])
def test_what_is_no_text_is_refused(teacher: Path, texts: list) -> None:
    predictor = tb.load_predictor(teacher)
    unchecked = type(predictor).__call__.__wrapped__  # the type checker of the tests would refuse it first
    with pytest.raises(ValueError, match=r"give texts, or pairs of texts; (nan|None) is none"):
        unchecked(predictor, texts)


def test_texts_are_cut_where_training_cut_them(teacher: Path) -> None:
    assert tb.load_predictor(teacher).max_length == 16


def test_a_model_without_a_classifier_is_refused(pretrained: Path) -> None:
    with pytest.raises(tb.InputError, match="holds no sequence classifier; train one first"):
        tb.load_predictor(pretrained, max_length=16)


def test_a_model_of_few_positions_is_refused(tmp_path: Path) -> None:
    """Two are the special tokens'; fewer than eight are no text."""
    tiny = Path(__file__).parent.parent / "fixtures" / "tiny-bert"
    config, params = tb.load_hf(tiny)
    tokenizer = tb.load_tokenizer(tiny, config)
    params["encoder"]["embeddings"]["position_embeddings"]["embedding"] = np.ones((2, config.hidden_size), np.float32)
    tb.save_hf(tmp_path, dataclasses.replace(config, max_position_embeddings=2), params, tokenizer)
    with pytest.raises(tb.InputError, match="has 2 positions, fewer than max_length 8"):
        tb.load_predictor(tmp_path)


def test_all_probabilities_are_given_by_class(teacher: Path) -> None:
    predictor = tb.load_predictor(teacher)
    texts = ["a lovely bag", "it was awful"]
    likely = predictor.probabilities(texts)
    np.testing.assert_allclose(likely.sum(axis=1), 1, rtol=1e-6)
    for row, prediction in zip(likely, predictor(texts), strict=True):
        assert row[predictor.config.id2label.index(str(prediction.label))] == np.float32(prediction.value)
    assert predictor.probabilities([]).shape == (0, 2)
    with pytest.raises(ValueError, match=r"holds a sequence classifier: its predictor is called"):
        predictor.tags(["a bag"])


FIXTURES = Path(__file__).parent.parent / "fixtures"


def test_a_model_says_itself_which_head_it_has() -> None:
    """Outputs of the other heads in a call would be those of tokens."""
    tagger, reader = (
        tb.load_predictor(FIXTURES / name, max_length=16) for name in ("tiny-bert-token", "tiny-bert-qa")
    )
    assert (tagger.head, reader.head) == ("tokens", "span")
    with pytest.raises(ValueError, match="tiny-bert-token: holds a token classifier: its predictor gives `tags`"):
        tagger(["a text"])
    with pytest.raises(ValueError, match="its predictor gives `answers`"):
        reader.tags(["a text"])
    with pytest.raises(ValueError, match="give pairs of a question and its context"):
        type(reader).answers.__wrapped__(reader, ["ab"])  # which the type checker of the tests would refuse first
    assert tagger.tags([]) == reader.answers([]) == []


def test_tags_do_not_depend_on_the_texts_beside_them_nor_on_how_long_they_are() -> None:
    tagger = tb.load_predictor(FIXTURES / "tiny-bert-token", max_length=16, batch_size=2)
    texts: list = ["", "the film was good, very good.", ["the", "film"], "the film " * 30]
    together = tagger.tags(texts)
    assert [len(tagged.words) for tagged in together] == [0, 8, 2, 60]
    for text, tagged in zip(texts, together, strict=True):
        (alone,) = tagger.tags([text])
        assert alone.tags == tagged.tags
        np.testing.assert_allclose(alone.probabilities, tagged.probabilities, rtol=1e-5)
    assert together[1].words[4:] == (",", "very", "good", ".")
    assert together[2].starts == (0, 4)


def test_an_answer_has_its_place_and_its_probability() -> None:
    reader = tb.load_predictor(FIXTURES / "tiny-bert-qa", max_length=16)
    context = "  the film was good, and the plot not so bad, very fine, dull and very very good  "
    answer, none = reader.answers([("was it good", context), ("the film", "  ")])
    assert answer.text
    assert context[answer.start : answer.start + len(answer.text)] == answer.text
    assert 0 < answer.probability < 1
    assert none == ("", -1, 1.0), "nothing but [CLS] may be the answer"
