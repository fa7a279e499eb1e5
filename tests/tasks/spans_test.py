"""Windows show every part of a context with its answer, and the best span over them is the answer."""

import dataclasses
import itertools
import json
import random

import numpy as np
import pytest
from conftest import QA_WORDS, family_tokenizer, make_tokenizer, write_squad

from tinybert_jax.errors import InputError
from tinybert_jax.tasks import spans
from tinybert_jax.tasks.spans import answers, windows
from tinybert_jax.tasks.squad import read_squad

WORDS = [*QA_WORDS, "##s", "##ly", "19", "##90", "e"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("vocab"), WORDS)


@pytest.fixture(scope="module", params=["bert", "roberta", "xlm-roberta"])
def any_tokenizer(request, tokenizer):
    return tokenizer if request.param == "bert" else family_tokenizer(request.param, QA_WORDS)


def questions_on(path, context, asked, start=None, text=None, unanswerable=False):
    """A file of one question; its answer, where given, is `text` at `start`."""
    answers = [{"text": text, "answer_start": start}] if text else []
    qa = {"id": "1", "question": asked, "answers": answers}
    qa |= {"is_impossible": not answers} if unanswerable or not answers else {}
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": context, "qas": [qa]}]}]}))
    return read_squad(path)


def long_questions(path, n=30):
    """Questions on contexts of up to 60 words, whose answers are anywhere, some with two, and some without any."""
    choose = random.Random(0)
    paragraphs = []
    for i in range(n):
        words = choose.choices(
            ["anna", "Rome", "teas", "1990", "likes", "oslo,", "É", "\u200b"], k=choose.randint(1, 60)
        )
        context = ""
        places = []
        for word in words:
            context += choose.choice(["", " ", "\n"]) + " "
            places.append((len(context), len(context) + len(word)))
            context += word
        context += choose.choice(["", " "])
        first = choose.randrange(len(words))
        last = min(len(words) - 1, first + choose.randrange(4))
        start, end = places[first][0], places[last][1]
        gold = [{"text": context[start:end], "answer_start": start}, {"text": words[0], "answer_start": places[0][0]}]
        gold = [] if i % 5 == 4 else gold[: 1 + i % 2]
        asked = " ".join(choose.choices(["where", "does", "she"], k=choose.randint(0, 12)))
        qa = {"id": str(i), "question": asked, "answers": gold, "is_impossible": not gold}
        paragraphs.append({"context": context, "qas": [qa]})
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    return read_squad(path)


def row(tokens, i):
    return slice(tokens.offsets[i], tokens.offsets[i + 1])


def test_a_window_is_the_question_and_a_part_of_the_context(tokenizer, tmp_path):
    questions = questions_on(
        tmp_path / "q.json", "anna lives in rome . she likes tea", "where does anna live", 14, "rome"
    )
    tokens, placed = windows(questions, tokenizer, 12, 2)
    decoded = [tokenizer.convert_ids_to_tokens(tokens.input_ids[row(tokens, i)].tolist()) for i in range(len(tokens))]
    asked = ["[CLS]", "where", "does", "anna", "live", "[SEP]"]
    assert decoded == [
        [*asked, *"anna lives in rome .".split(), "[SEP]"],
        [*asked, *"rome . she likes tea".split(), "[SEP]"],
    ]
    assert tokens.labels.tolist() == [[9, 9], [6, 6]]
    assert tokens.pair_starts.tolist() == [6, 6]
    assert placed.questions.tolist() == [0, 0]
    assert placed.char_starts[row(tokens, 1)].tolist() == [*[-1] * 6, 14, 19, 21, 25, 31, -1]
    assert placed.char_ends[row(tokens, 1)].tolist() == [*[-1] * 6, 18, 20, 24, 30, 34, -1]


@pytest.mark.parametrize(("max_length", "stride"), [(24, 4), (28, 0), (40, 20), (128, 16)])
def test_windows_cover_every_context_and_overlap_by_the_stride(any_tokenizer, tmp_path, max_length, stride):
    questions = long_questions(tmp_path / "q.json")
    tokens, placed = windows(questions, any_tokenizer, max_length, stride)
    assert tokens.lengths.max() <= max_length
    assert placed.questions.tolist() == sorted(placed.questions)
    for i, context in enumerate(questions.contexts):
        whole = any_tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)
        seen, ids = [], []
        for w in np.flatnonzero(placed.questions == i):
            inner = placed.char_starts[row(tokens, w)] >= 0
            ids += tokens.input_ids[row(tokens, w)][inner].tolist()[stride if seen else 0 :]
            places = np.stack([placed.char_starts, placed.char_ends], 1)[row(tokens, w)][inner].tolist()
            assert seen[len(seen) - stride :] == places[:stride] or not seen
            seen += places[stride if seen else 0 :]
        assert seen == [list(place) for place in whole["offset_mapping"]]
        assert ids == whole["input_ids"]


def test_labels_mark_the_first_answer_where_it_is_whole_and_cls_elsewhere(tokenizer, tmp_path):
    questions = long_questions(tmp_path / "q.json", 60)
    for max_length, stride in ((20, 4), (128, 8)):
        tokens, placed = windows(questions, tokenizer, max_length, stride)
        marked = np.zeros(len(questions), int)
        for w, (first, last) in enumerate(tokens.labels.tolist()):
            i = placed.questions[w]
            begins, ends = placed.char_starts[row(tokens, w)], placed.char_ends[row(tokens, w)]
            if not questions.answers[i]:
                assert (first, last) == (0, 0)
                continue
            answer, start = questions.answers[i][0], questions.answer_starts[i][0]
            parts = [c.strip() for c in answer.replace("\u200b", " ").split()]
            if (first, last) != (0, 0):
                marked[i] += 1
                text = questions.contexts[i][begins[first] : ends[last]]
                # what the tokenizer drops, a zero-width space, may lie at the ends of an answer
                assert text.split() == parts or text.replace("\u200b", " ").split() == parts
                assert start <= begins[first] <= ends[last] <= start + len(answer)
            else:
                inner = begins >= 0
                whole = tokenizer(questions.contexts[i], add_special_tokens=False, return_offsets_mapping=True)
                of_answer = {p for p in whole["offset_mapping"] if p[0] >= start and p[1] <= start + len(answer)}
                assert not of_answer or not of_answer <= set(zip(begins[inner], ends[inner], strict=True))
        has_tokens = [bool(a and a[0].replace("\u200b", "").strip()) for a in questions.answers]
        if max_length == 128:
            np.testing.assert_array_equal(marked > 0, has_tokens)
    assert not all(has_tokens)


def test_an_answer_inside_a_word_is_marked_by_the_pieces_it_touches(tokenizer, tmp_path):
    questions = questions_on(tmp_path / "q.json", "in 1990s", "where", 4, "990")
    tokens, _ = windows(questions, tokenizer, 16, 2)
    pieces = tokenizer.convert_ids_to_tokens(tokens.input_ids.tolist())
    assert pieces == ["[CLS]", "where", "[SEP]", "in", "19", "##90", "##s", "[SEP]"]
    assert tokens.labels.tolist() == [[4, 5]]
    second = questions_on(tmp_path / "r.json", "1990s", "where", 2, "90")
    assert windows(second, tokenizer, 16, 2)[0].labels.tolist() == [[4, 4]]


def test_a_batch_holds_windows_with_both_segments_and_labels(tokenizer, tmp_path):
    questions = long_questions(tmp_path / "q.json")
    tokens, _ = windows(questions, tokenizer, 24, 4)
    batch = tokens.batch(np.array([0, -1, 3]), 24)
    assert batch.labels.tolist() == [tokens.labels[0].tolist(), [0, 0], tokens.labels[3].tolist()]
    assert batch.labels.dtype == np.int32
    assert batch.token_type_ids[0].sum() == tokens.lengths[0] - tokens.pair_starts[0]


def test_a_long_question_is_cut_and_one_that_leaves_no_room_is_refused(tokenizer, tmp_path):
    questions = questions_on(tmp_path / "q.json", "anna lives in rome", "where " * 50, 14, "rome")
    tokens, _ = windows(questions, tokenizer, 32, 4, max_question_length=10)
    assert tokens.pair_starts.tolist() == [12]
    with pytest.raises(InputError) as error:
        windows(questions, tokenizer, 32, 4)
    assert str(error.value) == (
        "max_length 32 leaves 0 tokens for the context beside a question of 50; windows share 4:"
        " give a larger max_length"
    )
    windows(questions, tokenizer, 58, 4)  # 5 tokens go on by one at a time
    with pytest.raises(InputError, match="max_length 57 leaves 4 tokens"):
        windows(questions, tokenizer, 57, 4)


def test_windows_are_made_once_for_the_same_questions_tokenizer_and_sizes(tokenizer, tmp_path, monkeypatch):
    questions = long_questions(tmp_path / "q.json")
    prints = [
        windows(questions, tokenizer, 40, 4)[0].fingerprint,
        windows(questions, tokenizer, 41, 4)[0].fingerprint,
        windows(questions, tokenizer, 40, 5)[0].fingerprint,
        windows(questions, tokenizer, 40, 4, max_question_length=9)[0].fingerprint,
        windows(dataclasses.replace(questions, fingerprint="x"), tokenizer, 40, 4)[0].fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    first, placed = windows(questions, tokenizer, 40, 4)
    monkeypatch.setattr(spans, "_window_arrays", None)  # tokenizing again would fail
    second, again = windows(questions, tokenizer, 40, 4)
    for name in ("input_ids", "labels", "offsets"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    np.testing.assert_array_equal(placed.char_ends, again.char_ends)


def test_many_chunks_give_the_same_windows_as_one(tokenizer, tmp_path, monkeypatch):
    questions = long_questions(tmp_path / "q.json")
    one, placed = windows(questions, tokenizer, 40, 4, cache_dir=tmp_path / "one")
    monkeypatch.setattr(spans, "TOKENIZE_AT_ONCE", 7)
    many, again = windows(questions, tokenizer, 40, 4, cache_dir=tmp_path / "many")
    np.testing.assert_array_equal(one.input_ids, many.input_ids)
    np.testing.assert_array_equal(placed.questions, again.questions)


def one_hot(tokens):
    """Logits that are sure of the labels, [n, q, 2]."""
    logits = np.zeros((len(tokens), tokens.lengths.max() + 3, 2), np.float32)
    for side in range(2):
        logits[np.arange(len(tokens)), tokens.labels[:, side], side] = 5
    return logits


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_logits_that_are_sure_of_the_labels_give_the_right_answers(any_tokenizer, tmp_path, version):
    questions = read_squad(write_squad(tmp_path / "squad", version) / f"dev-v{version}.json")
    # a word at the beginning of a text is several pieces of RoBERTa's
    tokens, placed = windows(questions, any_tokenizer, 20 if "\u0120" in any_tokenizer.get_vocab() else 16, 4)
    assert len(tokens) > len(questions)
    right = [texts[0] if texts else "" for texts in questions.answers]
    assert answers(questions, placed, tokens, one_hot(tokens)) == right
    assert ("" in right) == (version == "2.0")


def by_hand(questions, placed, tokens, logits, longest, threshold):
    """The definition, by trying every span."""
    texts = []
    for i, context in enumerate(questions.contexts):
        best, text, null = -np.inf, "", np.inf
        for w in np.flatnonzero(placed.questions == i):
            begins, ends = placed.char_starts[row(tokens, w)], placed.char_ends[row(tokens, w)]
            null = min(null, float(logits[w, 0, 0]) + float(logits[w, 0, 1]))
            for a, b in itertools.product(np.flatnonzero(begins >= 0), repeat=2):
                if a <= b < a + longest and float(logits[w, a, 0]) + float(logits[w, b, 1]) > best:
                    best = float(logits[w, a, 0]) + float(logits[w, b, 1])
                    text = context[begins[a] : ends[b]].strip()
        texts.append("" if questions.unanswerable and null - best > threshold else text)
    return texts


@pytest.mark.parametrize("unanswerable", [True, False])
@pytest.mark.parametrize(("longest", "threshold"), [(1, 0.0), (3, -2.0), (30, 0.0), (30, 3.0)])
def test_the_answer_is_the_best_span_over_all_windows(any_tokenizer, tmp_path, longest, threshold, unanswerable):
    questions = dataclasses.replace(long_questions(tmp_path / "q.json"), unanswerable=unanswerable)
    tokens, placed = windows(questions, any_tokenizer, 24, 4)
    logits = np.random.default_rng(0).normal(0, 2, (len(tokens), 30, 2)).astype(np.float32)
    logits[:, 0] += 5  # so that some have no answer
    predicted = answers(questions, placed, tokens, logits, longest, threshold)
    assert predicted == by_hand(questions, placed, tokens, logits, longest, threshold)
    if unanswerable:
        assert 0 < predicted.count("") < len(predicted)


def test_an_answer_lies_in_the_context_alone(any_tokenizer, tmp_path):
    questions = questions_on(tmp_path / "q.json", "rome", "where does she live", 0, "rome")
    tokens, placed = windows(questions, any_tokenizer, 48, 2)
    logits = np.full((1, 48, 2), 100, np.float32)
    first, last = tokens.labels[0]
    logits[0, first : last + 1] = -100
    logits[0, first, 0] = logits[0, last, 1] = -99
    assert answers(questions, placed, tokens, logits) == ["rome"]


def test_a_context_of_which_the_tokenizer_leaves_nothing_has_no_answer(tokenizer, tmp_path):
    questions = questions_on(tmp_path / "q.json", "\u200b", "where")
    tokens, placed = windows(dataclasses.replace(questions, unanswerable=False), tokenizer, 16, 2)
    assert answers(questions, placed, tokens, np.zeros((1, 16, 2), np.float32)) == [""]


def test_an_answer_keeps_the_spelling_of_its_context(any_tokenizer, tmp_path):
    questions = questions_on(tmp_path / "q.json", "anna likes  Cold\nWÁTER .", "what", 12, "Cold\nWÁTER")
    tokens, placed = windows(questions, any_tokenizer, 48, 2)
    assert answers(questions, placed, tokens, one_hot(tokens)) == ["Cold\nWÁTER"]


def test_logits_of_other_rows_are_refused(tokenizer, tmp_path):
    questions = long_questions(tmp_path / "q.json")
    tokens, placed = windows(questions, tokenizer, 40, 4)
    for shape in ((len(tokens), 10, 2), (len(tokens) - 1, 40, 2), (len(tokens), 40, 3)):
        with pytest.raises(ValueError, match="must be"):
            answers(questions, placed, tokens, np.zeros(shape, np.float32))
