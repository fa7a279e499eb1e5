"""CoNLL files are read whole or refused by line, every word is tagged once, and spans are scored in every scheme."""

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
from conftest import NER_WORDS, family_tokenizer, make_tokenizer, write_conll

from tinybert_jax.errors import InputError
from tinybert_jax.models.files.frame import frame_of
from tinybert_jax.tasks import ner
from tinybert_jax.tasks.ner import align, discover_labels, read_conll, score, spans, tags, write

GOOD = "-DOCSTART- -X- O\n\nAnna NNP B-PER\nlives VBZ O\n\nRome NNP B-LOC\n. . O\n"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("vocab"), [*NER_WORDS, "##s", "##m", "-"])


@pytest.fixture(scope="module", params=["bert", "roberta", "xlm-roberta"])
def any_tokenizer(request, tokenizer):
    return tokenizer if request.param == "bert" else family_tokenizer(request.param, NER_WORDS)


def read(tmp_path, content, name="train.txt"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_conll(path)


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        "\ufeff" + GOOD,
        GOOD.replace("\n", "\r\n"),
        GOOD.rstrip("\n"),
        GOOD.replace(" ", "\t"),
        GOOD.replace(" ", "   ").replace("\n", "  \n"),
        GOOD.replace("\n\n", "\n \t\n\n\n"),
        GOOD.replace(" NNP", "").replace(" VBZ", "").replace(" . O", " O").replace("\n\nRome", "\n-DOCSTART- O\nRome"),
    ],
    ids=["plain", "byte order mark", "CRLF", "no last newline", "tabs", "spaces", "blank lines", "two columns"],
)
def test_harmless_differences_between_files_change_no_word(tmp_path, content):
    sentences = read(tmp_path, content)
    assert list(sentences.words) == [("Anna", "lives"), ("Rome", ".")]
    assert list(sentences.tags) == [("B-PER", "O"), ("B-LOC", "O")]
    lines = sentences.path.read_text("utf-8-sig").splitlines()
    assert [lines[i - 1].split()[0] for i in sentences.lines] == ["Anna", "Rome"]
    assert sentences.fingerprint == read(tmp_path, GOOD).fingerprint


def test_a_word_may_hold_spaces_between_tabs_and_unusual_characters(tmp_path):
    assert read(tmp_path, "New York\tB-LOC\n").words == [("New York",)]
    assert read(tmp_path, "a\xa0b O\nc\u2028d O\n\x85 O\n#no O\n").words == [("a\xa0b", "c\u2028d", "\x85", "#no")]


TWO = "Anna B-PER\nlives O\n\nRome B-LOC\n. O\n"


@pytest.mark.parametrize(
    "comment", ["# id 1\tdomain=x", "# sent_id = 1", "# a", "#begin document (a); part 0", "##", "#"]
)
@pytest.mark.parametrize("content", [GOOD, GOOD.replace(" ", "\t"), TWO, TWO.replace(" ", "\t")])
def test_a_comment_before_a_sentence_is_no_word(tmp_path, comment, content):
    commented = f"{comment}\n{comment}\n{content}".replace("Rome", f"{comment}\nRome") + f"\n{comment}\n"
    sentences = read(tmp_path, commented)
    assert list(sentences.words) == [("Anna", "lives"), ("Rome", ".")]
    assert list(sentences.tags) == [("B-PER", "O"), ("B-LOC", "O")]
    lines = commented.splitlines()
    assert [lines[i - 1].split()[0] for i in sentences.lines] == ["Anna", "Rome"]


def test_words_that_begin_with_a_hash_are_kept(tmp_path):
    assert read(tmp_path, "# O\n1 O\n\n#no O\nway O\n").words == [("#", "1"), ("#no", "way")]
    assert read(tmp_path, "# O\n\n#no O\n").words == [("#",), ("#no",)]
    assert read(tmp_path, "# id 1\n#no\nway\n\n#\n").words == [("#no", "way"), ("#",)]


JSON_LINE = '{"tokens": ["Anna", "lives"], "ner_tags": [1, 0]}\n'
CONLL_U = "# text = Anna lives\n1\tAnna\t_\tPROPN\n2\tlives\t_\tVERB\n\n1-2\tal\t_\t_\n1\ta\t_\tADP\n2\tel\t_\tDET\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (JSON_LINE * 2, "train.txt:1: holds JSON, and this task reads CoNLL files"),
        (f"[\n{JSON_LINE}]\n", "train.txt:1: holds JSON"),
        (
            CONLL_U,
            "train.txt:2: the first column must be the word, and numbers the words, as in CoNLL-U: keep the col",
        ),
        (
            "d 0 Anna PER\nd 1 lives O\n\nd 0 Ben PER\nd 1 too O\n",
            "train.txt:1: the first column must be the word, and is 'd'",
        ),
        ("B-PER Anna\nO lives\n\nO too\n", "train.txt:1: the first column has the tags: write the word first and its"),
        ("\nword\tner_tag\nAnna\tB-PER\n", "train.txt:2: the line is a header: remove it"),
        ("Anna,B-PER\nlives,O\n", "train.txt:1: commas separate the columns: write spaces or tabs between them"),
    ],
    ids=["JSON lines", "JSON", "CoNLL-U", "CoNLL-2012", "tags first", "header", "commas"],
)
def test_a_file_of_another_layout_is_refused_by_its_name(tmp_path, content, message):
    with pytest.raises(InputError) as error:
        read(tmp_path, content)
    assert str(error.value).startswith(f"{tmp_path}/{message}")


def test_a_file_of_one_column_has_no_tags(tmp_path):
    sentences = read(tmp_path, "-DOCSTART-\n\nAnna\nlives\n\nRome\n")
    assert list(sentences.words) == [("Anna", "lives"), ("Rome",)]
    assert (sentences.tags, sentences.labelled) == (None, False)
    assert read(tmp_path, GOOD).labelled
    with pytest.raises(InputError, match=r"train.txt: there are no tags to learn"):
        discover_labels(sentences)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a O\nb\n", "train.txt:2: columns: 1 instead of 2, as in the lines before: repair the line"),
        ("a O\n\nb X O\n", "train.txt:3: columns: 3 instead of 2"),
        ("a\n\nb O\n", "train.txt:3: columns: 2 instead of 1"),
        ("a\tO\nb\t\n", "train.txt:2: the tag is empty: fill it"),
        ("a\tO\n\tO\n", "train.txt:2: the word is empty: fill it"),
        ("", "train.txt:1: the file holds no word: give one with a word and its tag in each line"),
        ("-DOCSTART- O\n\n\n", "train.txt:1: the file holds no word"),
        (b"a O\nb\xe9 O\n", "train.txt:2: byte 0xe9 is not UTF-8: save the file as UTF-8"),
        ("a O\nb\0 O\n", "train.txt:2: a NUL byte: remove it"),
        ("a O\nb\rc O\n", "train.txt:2: a lone carriage return"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, content, message):
    with pytest.raises(InputError) as error:
        read(tmp_path, content)
    assert str(error.value).startswith(f"{tmp_path}/{message}")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.txt: cannot be read"):
        read_conll(tmp_path / "none.txt")


def test_the_labels_of_a_file_start_with_o(tmp_path):
    assert discover_labels(read(tmp_path, GOOD + "x y I-LOC\n")) == ("O", "B-LOC", "B-PER", "I-LOC")
    assert discover_labels(read(tmp_path, "a NOUN\nb ADJ\n")) == ("ADJ", "NOUN")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a O\nb O\n", "train.txt: all words have the tag 'O': classification needs at least two"),
        ("".join(f"w x{i}\n" for i in range(30)), "train.txt: 30 different tags on 30 words: the last column must be"),
    ],
)
def test_tags_that_cannot_be_learned_are_refused(tmp_path, content, message):
    with pytest.raises(InputError) as error:
        discover_labels(read(tmp_path, content))
    assert str(error.value).startswith(f"{tmp_path}/{message}")


def test_an_unknown_tag_is_named_by_its_line(tmp_path, tokenizer):
    sentences = read(tmp_path, GOOD)
    with pytest.raises(InputError) as error:
        align(sentences, tokenizer, 16, ("O", "B-PER"))
    assert str(error.value) == (
        f"{tmp_path}/train.txt:6: unknown tag 'B-LOC'; the model or training file has 'O', 'B-PER': correct it"
        " in the file, or give a model of these tags"
    )


def test_a_tag_sits_on_the_first_piece_of_its_word(tmp_path, tokenizer):
    sentences = read(tmp_path, "Annas B-PER\nlives O\nNew-Rome B-LOC\n")
    tokens = align(sentences, tokenizer, 16, ("O", "B-LOC", "B-PER"))
    pieces = tokenizer.convert_ids_to_tokens(tokens.input_ids.tolist())
    assert pieces == ["[CLS]", "anna", "##s", "lives", "new", "-", "rome", "[SEP]"]
    assert tokens.labels.tolist() == [-1, 2, -1, 0, 1, -1, -1, -1]
    batch = tokens.batch(np.array([0, -1]), 10)
    assert batch.labels.tolist() == [[-1, 2, -1, 0, 1, -1, -1, -1, -1, -1], [-1] * 10]
    assert batch.token_type_ids.sum() == 0
    assert batch.labels.dtype == np.int32


def test_the_labels_of_a_teacher_are_the_ids(tmp_path, tokenizer):
    sentences = read(tmp_path, GOOD)
    tokens = align(sentences, tokenizer, 16, ("B-LOC", "B-PER", "O", "I-LOC"))
    assert tokens.labels[tokens.labels >= 0].tolist() == [1, 2, 0, 2]


def many_sentences(tmp_path, n=40):
    """Sentences of up to 40 words, some of several pieces, of none, or of more than a row."""
    choose = random.Random(0)
    words = ["anna", "romes", "new-rome", "\u200b", "\u00ad", "[SEP]", "-" * 30, "zzz", "\ud55c"]
    tagged = ["B-PER", "I-PER", "O", "B-LOC"]
    lines = []
    for _ in range(n):
        lines += [f"{choose.choice(words)} {choose.choice(tagged)}" for _ in range(choose.randint(1, 40))] + [""]
    return read(tmp_path, "\n".join(lines))


@pytest.mark.parametrize("max_length", [3, 8, 17, 512])
def test_every_word_is_labelled_once_and_no_row_is_too_long(tmp_path, any_tokenizer, max_length):
    sentences = many_sentences(tmp_path)
    labels = discover_labels(sentences)
    tokens = align(sentences, any_tokenizer, max_length, labels)
    assert tokens.lengths.max() <= max_length
    assert len(tokens) > len(sentences.words) or max_length == 512
    of_words = [labels[i] for i in tokens.labels[tokens.labels >= 0]]
    assert of_words == [tag for sentence in sentences.tags for tag in sentence]
    firsts, lasts = tokens.input_ids[tokens.offsets[:-1]], tokens.input_ids[tokens.offsets[1:] - 1]
    assert (set(firsts), set(lasts)) == ({any_tokenizer.cls_token_id}, {any_tokenizer.sep_token_id})


def test_pieces_are_those_of_the_tokenizer(tmp_path, tokenizer):
    sentences = many_sentences(tmp_path)
    tokens = align(sentences, tokenizer, 2000, discover_labels(sentences))
    for i, words in enumerate(sentences.words):
        kept = ["[UNK]" if word in ("\u200b", "\u00ad") else word for word in words]
        expected = tokenizer(kept, is_split_into_words=True)
        assert tokens.input_ids[tokens.offsets[i] : tokens.offsets[i + 1]].tolist() == expected["input_ids"]


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta"])
def test_a_word_has_the_pieces_that_it_has_after_a_space(tmp_path, family):
    """RoBERTa's pieces of a word alone are those of a word that goes on."""
    tokenizer = family_tokenizer(family, NER_WORDS)
    sentences = read(tmp_path, "anna B-PER\nlives O\nromes O\ncaf\u00e9 B-LOC\n")
    tokens = align(sentences, tokenizer, 32, ("O", "B-LOC", "B-PER"))
    assert tokens.input_ids.tolist() == tokenizer(" anna lives romes caf\u00e9")["input_ids"]
    starts = tokenizer.convert_ids_to_tokens(tokens.input_ids[tokens.labels >= 0].tolist())
    assert starts[:2] == [f"{frame_of(tokenizer).space}{word}" for word in ("anna", "lives")]
    assert tokens.pair_starts.tolist() == tokens.lengths.tolist()


@pytest.mark.parametrize("max_length", [8, 17, 512])
def test_logits_that_are_sure_of_the_labels_give_the_tags_of_the_file(tmp_path, any_tokenizer, max_length):
    sentences = many_sentences(tmp_path)
    labels = discover_labels(sentences)
    tokens = align(sentences, any_tokenizer, max_length, labels)
    batch = tokens.batch(np.arange(len(tokens)), int(tokens.lengths.max()) + 2)
    logits = np.eye(len(labels), dtype=np.float32)[batch.labels]
    assert tags(sentences, tokens, logits, labels) == [list(sentence) for sentence in sentences.tags]
    unlabelled = dataclasses.replace(sentences, tags=None, fingerprint="unlabelled")
    again = align(unlabelled, any_tokenizer, max_length, labels)
    assert tags(unlabelled, again, logits, labels) == [list(sentence) for sentence in sentences.tags]
    with pytest.raises(ValueError, match="must be"):
        tags(sentences, tokens, logits[:-1], labels)


def test_a_sentence_beyond_the_models_length_gives_no_warning(tmp_path, tokenizer, monkeypatch, caplog, capfd):
    monkeypatch.setattr(tokenizer, "model_max_length", 8)
    align(many_sentences(tmp_path), tokenizer, 8, ("O", "B-PER", "I-PER", "B-LOC"))
    assert (caplog.text, capfd.readouterr().err) == ("", "")


def test_pieces_are_made_once_for_the_same_words_tokenizer_and_length(tmp_path, tokenizer, monkeypatch):
    sentences = many_sentences(tmp_path)
    labels = discover_labels(sentences)
    tokens = align(sentences, tokenizer, 16, labels)
    prints = [
        tokens.fingerprint,
        align(sentences, tokenizer, 17, labels).fingerprint,
        align(dataclasses.replace(sentences, fingerprint="x"), tokenizer, 16, labels).fingerprint,
        align(sentences, make_tokenizer(tmp_path, [*NER_WORDS]), 16, labels).fingerprint,
    ]
    assert len(set(prints)) == 4
    monkeypatch.setattr(ner, "_encode_words", None)  # tokenizing again would fail
    np.testing.assert_array_equal(align(sentences, tokenizer, 16, labels).labels, tokens.labels)
    # labels are those of the call and never of the cache
    turned = align(sentences, tokenizer, 16, labels[::-1])
    marked = tokens.labels >= 0
    np.testing.assert_array_equal(turned.labels[marked], len(labels) - 1 - tokens.labels[marked])


def test_many_chunks_give_the_same_pieces_as_one(tmp_path, tokenizer, monkeypatch):
    sentences = many_sentences(tmp_path)
    labels = discover_labels(sentences)
    one = align(sentences, tokenizer, 16, labels, tmp_path / "one")
    monkeypatch.setattr(ner, "TOKENIZE_AT_ONCE", 7)
    many = align(sentences, tokenizer, 16, labels, tmp_path / "many")
    np.testing.assert_array_equal(one.input_ids, many.input_ids)
    np.testing.assert_array_equal(one.labels, many.labels)


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("O O O", []),
        ("B-PER I-PER O", [("PER", 0, 1)]),
        ("O B-PER", [("PER", 1, 1)]),  # at the end
        ("I-PER I-PER O I-LOC", [("PER", 0, 1), ("LOC", 3, 3)]),  # no B needed: IOB1
        ("I-PER B-PER I-PER", [("PER", 0, 0), ("PER", 1, 2)]),  # IOB1's B between neighbours
        ("B-PER B-PER", [("PER", 0, 0), ("PER", 1, 1)]),
        ("B-PER I-LOC I-LOC", [("PER", 0, 0), ("LOC", 1, 2)]),  # another type begins a span
        ("B-PER I-PER E-PER S-PER S-PER", [("PER", 0, 2), ("PER", 3, 3), ("PER", 4, 4)]),  # IOBES
        ("B-PER E-PER I-PER", [("PER", 0, 1), ("PER", 2, 2)]),
        ("S-PER E-PER", [("PER", 0, 0), ("PER", 1, 1)]),
        ("E-PER E-PER", [("PER", 0, 0), ("PER", 1, 1)]),
        ("O E-PER O", [("PER", 1, 1)]),
        ("B-PER E-LOC", [("PER", 0, 0), ("LOC", 1, 1)]),
        ("B-PER O I-PER", [("PER", 0, 0), ("PER", 2, 2)]),
        ("B-PER L-PER U-LOC", [("PER", 0, 1), ("LOC", 2, 2)]),  # BILOU
        ("B-PER L-PER U-PER U-PER I-PER", [("PER", 0, 1), ("PER", 2, 2), ("PER", 3, 3), ("PER", 4, 4)]),
        ("B-PER M-PER E-PER S-LOC B-LOC M-LOC", [("PER", 0, 2), ("LOC", 3, 3), ("LOC", 4, 5)]),  # BMES
        ("B-a-b I-a-b I-a-c", [("a-b", 0, 1), ("a-c", 2, 2)]),  # a hyphen in the type
        ("NOUN NOUN O -LRB- B-", [("NOUN", 0, 0), ("NOUN", 1, 1), ("-LRB-", 3, 3), ("B-", 4, 4)]),
        ("", []),
    ],
)
def test_the_spans_of_every_scheme(sentence, expected):
    assert spans(sentence.split()) == set(expected)


def test_tags_without_a_type_are_prefixes_where_there_are_no_others():
    """The corpora of BLURB have such tags; the numbers are seqeval's."""
    sentences = sentences_with("B I I O B I O")
    assert score(sentences, [tuple("BIIOBIO")])["f1"] == 1
    scores = score(sentences, [tuple("BIOOBIO")])
    assert (scores["precision"], scores["recall"]) == (0.5, 0.5)
    parts_of_speech = sentences_with("N V I I")
    assert score(parts_of_speech, [("N", "V", "I", "N")])["recall"] == 0.75


def sentences_with(*gold):
    words = [("w",) * len(tags.split()) for tags in gold]
    return ner.Sentences(words, [tuple(tags.split()) for tags in gold], [1] * len(gold), Path("dev.txt"), "")


def test_score_counts_spans_and_words():
    sentences = sentences_with("B-PER I-PER O B-LOC", "O B-LOC")
    # right: LOC at the end of the first; wrong: a PER that is too short, a LOC of another type
    predicted = [["B-PER", "O", "O", "B-LOC"], ["O", "B-PER"]]
    assert score(sentences, predicted) == {
        "f1": pytest.approx(1 / 3),
        "precision": pytest.approx(1 / 3),
        "recall": pytest.approx(1 / 3),
        "accuracy": pytest.approx(4 / 6),
    }
    fewer = score(sentences, [["B-PER", "I-PER", "O", "O"], ["O", "O"]])
    assert fewer == {"f1": 0.5, "precision": 1, "recall": pytest.approx(1 / 3), "accuracy": pytest.approx(4 / 6)}


def test_a_span_does_not_go_on_in_the_next_sentence():
    assert score(sentences_with("B-PER", "I-PER"), [["B-PER"], ["B-PER"]])["f1"] == 1


def test_without_spans_the_score_is_zero_and_no_warning():
    nothing = {"f1": 0, "precision": 0, "recall": 0}
    assert score(sentences_with("O O"), [["O", "O"]]) == nothing | {"accuracy": 1}
    assert score(sentences_with("O O"), [["O", "B-PER"]]) == nothing | {"accuracy": 0.5}
    assert score(sentences_with("B-PER O"), [["O", "O"]]) == nothing | {"accuracy": 0.5}


def test_of_parts_of_speech_f1_is_the_accuracy():
    sentences = sentences_with("NOUN VERB NOUN ADJ")
    assert set(score(sentences, ["NOUN NOUN NOUN VERB".split()]).values()) == {0.5}


def test_predictions_are_written_as_they_are_read(tmp_path):
    sentences = read_conll(write_conll(tmp_path / "conll") / "dev.txt")
    again = read(tmp_path, write(sentences, sentences.tags), "predictions.txt")
    assert (list(again.words), list(again.tags)) == (list(sentences.words), list(sentences.tags))
    assert write(sentences_with("O B-X", "O"), [["B-Y", "O"], ["O"]]) == "w\tB-Y\nw\tO\n\nw\tO\n\n"
    assert score(sentences, sentences.tags) == {"f1": 1, "precision": 1, "recall": 1, "accuracy": 1}
