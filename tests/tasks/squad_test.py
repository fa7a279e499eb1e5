"""SQuAD files are read whole or refused by place, and answers are scored as the official scripts do."""

import dataclasses
import json

import numpy as np
import pytest
from conftest import write_squad

from tinybert_jax.errors import InputError
from tinybert_jax.tasks import squad
from tinybert_jax.tasks.squad import Questions, from_tfds, read_squad

CONTEXT = " Anna lives in Rome. She likes green tea."
WHERE = {"id": "1", "question": "Where?", "answers": [{"text": "Rome", "answer_start": 15}]}
NOT_ASKED = {"id": "2", "question": "Who?", "answers": [], "is_impossible": True}


def write(path, *qas, context=CONTEXT, **fields):
    content = {"data": [{"title": "t", "paragraphs": [{"context": context, "qas": list(qas)}]}]} | fields
    path.write_text(json.dumps(content))
    return path


def changed(**fields):
    return {name: value for name, value in (WHERE | fields).items() if value is not None}


def answered(text, start):
    return changed(answers=[{"text": text, "answer_start": start}])


def test_both_versions_are_read(tmp_path):
    questions = read_squad(write(tmp_path / "1.json", WHERE, version="1.1"))
    assert (list(questions.ids), list(questions.questions), list(questions.contexts)) == (["1"], ["Where?"], [CONTEXT])
    assert (list(questions.answers), list(questions.answer_starts)) == ([("Rome",)], [(15,)])
    assert (questions.labelled, questions.unanswerable) == (True, False)
    second = read_squad(write(tmp_path / "2.json", WHERE | {"is_impossible": False}, NOT_ASKED))
    assert list(second.answers) == [("Rome",), ()]
    assert (second.labelled, second.unanswerable) == (True, True)


def test_a_file_without_answers_is_not_labelled_and_tells_its_kind_by_its_version(tmp_path):
    for version, unanswerable in (("1.1", False), ("v2.0", True), ("2.0", True)):
        questions = read_squad(write(tmp_path / "test.json", changed(answers=None), version=version))
        assert (questions.labelled, questions.unanswerable) == (False, unanswerable)
        assert list(questions.answers) == [()]


@pytest.mark.parametrize(
    ("text", "start"), [("Rome", 15), (" Rome", 14), ("Rome ", 15), ("Rome", 14), (" Rome", 15), ("\nRome\t", 14)]
)
def test_white_space_around_an_answer_is_no_error(tmp_path, text, start):
    questions = read_squad(write(tmp_path / "a.json", answered(text, start)))
    assert list(questions.answers) == [("Rome",)]
    assert list(questions.answer_starts) == [(15,)]


UNANSWERED = {"id": "2", "question": "Who?", "answers": []}


@pytest.mark.parametrize(
    ("version", "may_lack_answers", "reads"),
    [("v2.0", False, True), ("2.0", False, True), ("1.1", True, True), ("1.1", False, False)],
)
def test_an_empty_list_of_answers_is_none_where_the_task_or_the_version_has_such_questions(
    tmp_path, version, may_lack_answers, reads
):
    path = write(tmp_path / "dev.json", WHERE, UNANSWERED, version=version)
    if reads:
        questions = read_squad(path, may_lack_answers)
        assert (list(questions.answers), questions.unanswerable, questions.labelled) == ([("Rome",), ()], True, True)
        assert squad.score(questions, ["Rome", ""]) == {"f1": 1.0, "exact_match": 1.0}
    else:
        with pytest.raises(
            InputError, match=r"qas\[1\]: there is no answer: give one, or is_impossible true and --task"
        ):
            read_squad(path, may_lack_answers)


def test_an_empty_list_of_answers_to_a_question_that_is_said_to_have_one_is_refused(tmp_path):
    path = write(tmp_path / "dev.json", WHERE, UNANSWERED | {"is_impossible": False}, version="v2.0")
    with pytest.raises(InputError, match=r"qas\[1\]: is_impossible is false, but there is no answer: correct"):
        read_squad(path, may_lack_answers=True)


def test_the_layout_of_the_hub_is_read(tmp_path):
    expected = read_squad(write(tmp_path / "squad.json", WHERE, NOT_ASKED))
    flat = [
        {"id": "1", "context": CONTEXT, "question": "Where?", "answers": {"text": ["Rome"], "answer_start": [15]}},
        {"id": "2", "context": CONTEXT, "question": "Who?", "answers": {"text": [], "answer_start": []}},
    ]
    lines = "\n".join(map(json.dumps, flat)) + "\n"
    articles = json.loads((tmp_path / "squad.json").read_text())["data"]
    for content in (lines, json.dumps(flat), json.dumps({"data": flat}), json.dumps(articles)):
        (tmp_path / "hub.json").write_text(content)
        questions = read_squad(tmp_path / "hub.json", may_lack_answers=True)
        assert vars(questions) == vars(expected)
    (tmp_path / "hub.json").write_text(lines.splitlines()[0])
    assert list(read_squad(tmp_path / "hub.json").answers) == [("Rome",)]
    (tmp_path / "hub.json").write_text(lines.replace("[15]", "[]"))
    with pytest.raises(InputError, match=r"hub\.json: data\[0\]: 'answers' has not as many texts as places"):
        read_squad(tmp_path / "hub.json", may_lack_answers=True)
    (tmp_path / "hub.json").write_text(lines + "{\n")
    with pytest.raises(InputError, match=r"hub\.json:3: not JSON"):
        read_squad(tmp_path / "hub.json", may_lack_answers=True)


AT = "data[0].paragraphs[0].qas[0]"


@pytest.mark.parametrize(
    ("qas", "message"),
    [
        (
            [answered("Rome", 16)],
            f"{AT}.answers[0]: answer_start 16 points at 'ome.' and not at 'Rome'; 'Rome' is at 15:",
        ),
        (
            [answered("rome", 15)],
            f"{AT}.answers[0]: answer_start 15 points at 'Rome' and not at 'rome', which does not hold 'rome': an",
        ),
        (
            [answered("Rome", -1)],
            f"{AT}.answers[0]: answer_start -1 lies outside the context of 41 characters; 'Rome' is at 15: count char",
        ),
        (
            [answered("Rome", 1000)],
            f"{AT}.answers[0]: answer_start 1000 lies outside the context of 41 characters; 'Rome' is at 15: count",
        ),
        (
            [answered("e", -1)],
            f"{AT}.answers[0]: answer_start -1 lies outside the context of 41 characters; 'e' is at 9 (or 6 other pl",
        ),
        (
            [answered("Oslo", -1)],
            f"{AT}.answers[0]: answer_start -1 lies outside the context of 41 characters, which does not hold 'Oslo':",
        ),
        ([answered(" ", 14)], f"{AT}.answers[0]: 'text' is empty: give the answer's text, or no answer"),
        (
            [answered("Rome", "15")],
            f"{AT}.answers[0]: 'answer_start' is a string instead of a whole number: write one",
        ),
        ([answered("Rome", True)], f"{AT}.answers[0]: 'answer_start' is a boolean instead of a whole number"),
        (
            [changed(answers=["Rome"])],
            f"{AT}.answers[0]: a string instead of an object: give a file in SQuAD's layout",
        ),
        ([changed(answers={"text": ["Rome"]})], f"{AT}: 'answers' is an object instead of a list"),
        ([changed(question=None)], f"{AT}: no key 'question': give a file in SQuAD's layout"),
        ([changed(question="\0")], f"{AT}: 'question' holds a NUL or half a surrogate pair: remove it"),
        ([changed(id=7)], f"{AT}: 'id' is a number instead of a string: write one"),
        ([WHERE, WHERE], "data[0].paragraphs[0].qas[1]: the id '1' is also used by"),
        ([changed(answers=[])], f"{AT}: there is no answer: give one, or is_impossible true"),
        ([changed(is_impossible=True)], f"{AT}: is_impossible is true, but there are answers: correct one of the two"),
        ([changed(is_impossible="no")], f"{AT}: 'is_impossible' is a string instead of true or false"),
        (
            [WHERE, {"id": "2", "question": "Who?"}],
            "data[0].paragraphs[0].qas[1]: no 'answers', which other questions",
        ),
        ([], "there is no question: give another file"),
        ([3], f"{AT}: a number instead of an object"),
    ],
)
def test_a_malformed_question_is_named_by_its_place(tmp_path, qas, message):
    path = write(tmp_path / "dev.json", *qas)
    with pytest.raises(InputError) as error:
        read_squad(path)
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ":1: not JSON"),
        (b'{"data":\n[}', ":2: not JSON"),
        (b"[" * 100_000, ":1: not JSON"),
        (b"[1]", ": a list instead of an object: give a file in SQuAD's layout"),
        (b"{}", ": no key 'data'"),
        (b'{"data": [{"paragraphs": [{"qas": []}]}]}', ": data[0].paragraphs[0]: no key 'context'"),
        (b'{"data": [{"paragraphs": 1}]}', ": data[0]: 'paragraphs' is a number instead of a list"),
        (b'{"data": "\xe9"}', ":1: byte 0xe9 is not UTF-8"),
    ],
)
def test_a_malformed_file_is_named(tmp_path, content, message):
    path = tmp_path / "train.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_squad(path)
    assert str(error.value).startswith(f"{path}{message}")
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.json: cannot be read"):
        read_squad(tmp_path / "none.json")


def test_whatever_a_question_says_changes_the_fingerprint(tmp_path):
    files = [
        ([WHERE], CONTEXT, "1.1"),
        ([WHERE], CONTEXT, "2.0"),
        ([WHERE], CONTEXT + "!", "1.1"),
        ([changed(question="What?")], CONTEXT, "1.1"),
        ([changed(id="x")], CONTEXT, "1.1"),
        ([answered("tea", 37)], CONTEXT, "1.1"),
        ([changed(answers=None)], CONTEXT, "1.1"),
    ]
    prints = [
        read_squad(write(tmp_path / f"{i}.json", *qas, context=context, version=version)).fingerprint
        for i, (qas, context, version) in enumerate(files)
    ]
    assert len(set(prints)) == len(prints)
    same = read_squad(write(tmp_path / "same.json", WHERE, version="1.1", more="ignored"))
    assert same.fingerprint == prints[0]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The synthetic questions as TFDS sets with the features of squad/v1.1 and squad/v2.0."""
    import tensorflow_datasets as tfds

    data_dir, folder = tmp_path_factory.mktemp("tfds"), tmp_path_factory.mktemp("squad")
    answers = tfds.features.Sequence({"text": tfds.features.Text(), "answer_start": np.int32})
    common = {
        **{name: tfds.features.Text() for name in ("title", "context", "question")},
        "id": np.str_,
        "answers": answers,
    }

    class TinySquad(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("3.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="v1.1"), tfds.core.BuilderConfig(name="v2.0")]  # noqa: RUF012

        def _info(self):
            more = {"is_impossible": np.bool_, "plausible_answers": answers}
            features = common | (more if self.builder_config.name == "v2.0" else {})
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            version = self.builder_config.name[1:]
            path = write_squad(folder / version, version, train=5, dev=9)
            return {
                "train": self._generate_examples(path / f"train-v{version}.json"),
                "validation": self._generate_examples(path / f"dev-v{version}.json"),
            }

        def _generate_examples(self, path):
            for i, paragraph in enumerate(json.loads(path.read_text())["data"][0]["paragraphs"]):
                qa = paragraph["qas"][0] | ({"plausible_answers": []} if "v2.0" in path.name else {})
                yield i, {"title": "people", "context": paragraph["context"]} | qa

    tfds.disable_progress_bar()
    for version in ("v1.1", "v2.0"):
        TinySquad(config=version, data_dir=str(data_dir), file_format="array_record").download_and_prepare()
    tfds.core.add_data_dir(data_dir)
    return folder


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_a_prepared_tfds_set_holds_the_questions_of_the_file(prepared, version):
    for split in ("train", "dev"):
        of_file = read_squad(prepared / version / f"{split}-v{version}.json")
        of_set = from_tfds(f"tiny_squad/v{version}", split)
        assert of_file.fingerprint == of_set.fingerprint
        for name in ("ids", "questions", "contexts", "answers", "answer_starts", "labelled", "unanswerable"):
            assert getattr(of_file, name) == getattr(of_set, name), name
    assert {() in of_set.answers, of_set.unanswerable} == {version == "2.0"}


def test_a_tfds_set_that_cannot_serve_is_refused(prepared):
    with pytest.raises(InputError, match=r"tiny_squad/v1.1\[test\]: no such split; the set has train, validation"):
        from_tfds("tiny_squad/v1.1", "test")
    with pytest.raises(InputError, match=r"TFDS set 'squad/v1.1' is not prepared on this machine: prepare it once"):
        from_tfds("squad/v1.1", "train")


def questions_with(answers, unanswerable):
    n = len(answers)
    return Questions(
        [str(i) for i in range(n)],
        [""] * n,
        [""] * n,
        answers,
        [(0,) * len(a) for a in answers],
        True,
        unanswerable,
        "",
    )


# Gold answers, prediction, exact match and F1 by the definition of the official scripts; v1.1's, v2.0's where it is
# another.
OFFICIAL = [
    (("Rome",), "Rome", (1, 1)),
    (("Rome",), "rome", (1, 1)),
    (("Rome",), "the Rome.", (1, 1)),  # articles and punctuation do not count
    (("Rome",), "Paris", (0, 0)),
    (("Rome",), "", (0, 0)),
    (("green tea",), "tea", (0, 2 / 3)),
    (("green tea",), "green  \t tea ", (1, 1)),
    (("tea tea",), "tea", (0, 2 / 3)),  # a word counts as often as it occurs in both
    (("tea",), "tea tea tea", (0, 0.5)),
    (("tea for two",), "two for tea", (0, 1)),  # F1 knows no order
    (("Rome", "the city of Rome"), "city Rome", (0, 0.8)),  # the best of the answers
    (("a", "Rome"), "Rome", (1, 1)),
    (("U.S.",), "US", (1, 1)),  # punctuation goes without leaving a space
    (("Anna-Lena",), "anna lena", (0, 0)),
    (("theatre",), "atre", (0, 0)),  # an article is a whole word
    (("the-atre",), "theatre", (1, 1)),
    (("“Rome”",), "Rome", (0, 0)),  # only ASCII's punctuation goes
    (("1990–1995",), "19901995", (0, 0)),
    (("$5",), "5", (1, 1)),
    (("Élan",), "élan", (1, 1)),
    (("The",), "a", (1, 0), (1, 1)),  # both are nothing: 1.1's F1 finds no common word
    (("The", "cat"), "the", (1, 0), (0, 0)),  # 2.0 drops such an answer where there are others
]
NO_ANSWER = [((), "", (1, 1)), ((), "Rome", (0, 0)), ((), "the", (1, 1))]


@pytest.mark.parametrize("row", [*OFFICIAL, *NO_ANSWER], ids=lambda row: f"{row[0]}-{row[1]}")
def test_score_is_that_of_the_official_scripts(row):
    gold, prediction, first = row[:3]
    if gold:
        exact, f1 = first
        scores = squad.score(questions_with([gold], unanswerable=False), [prediction])
        assert scores == {"exact_match": exact, "f1": pytest.approx(f1)}
    exact, f1 = row[-1]
    scores = squad.score(questions_with([gold], unanswerable=True), [prediction])
    assert scores == {"exact_match": exact, "f1": pytest.approx(f1)}


def test_scores_are_means_over_questions():
    questions = questions_with([("Rome",), ("green tea",), (), ()], unanswerable=True)
    assert squad.score(questions, ["Rome", "tea", "", "x"]) == {
        "exact_match": 0.5,
        "f1": pytest.approx((1 + 2 / 3 + 1) / 4),
    }


def test_the_right_answers_score_one(tmp_path):
    for version in ("1.1", "2.0"):
        questions = read_squad(write_squad(tmp_path / version, version) / f"dev-v{version}.json")
        right = [texts[0] if texts else "" for texts in questions.answers]
        assert squad.score(questions, right) == {"exact_match": 1, "f1": 1}


def test_predictions_are_written_by_id():
    questions = dataclasses.replace(questions_with([("é",), ()], True), ids=["x", "y"])
    assert json.loads(squad.write(questions, ["é", ""])) == {"x": "é", "y": ""}
    assert "é" in squad.write(questions, ["é", ""])
