"""Several teachers, and functions as teachers: each reads its own tokens, and the student learns from their mean."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import scipy.special
from conftest import distillation, write_conll, write_reviews, write_scored_reviews, write_squad

import tinybert_jax as tb
from tinybert_jax import cache
from tinybert_jax.data.rows import Rows
from tinybert_jax.data.tokens import encode
from tinybert_jax.objectives.prediction import prediction_objective
from tinybert_jax.settings.tasks import get_task
from tinybert_jax.teachers.ensemble import average, class_order
from tinybert_jax.teachers.function import function_outputs
from tinybert_jax.teachers.teacher import Teacher
from tinybert_jax.training.inputs import load_inputs
from tinybert_jax.training.teaching import prepare, target_cache

PREDICTION = (tb.Stage(tb.Prediction(), epochs=4, learning_rate=3e-3),)


@pytest.fixture
def turned(teacher: Path, tmp_path: Path) -> Path:
    """The teacher with its classes in the other order, and other numbers in its classifier."""
    config, params = tb.load_hf(teacher)
    config = dataclasses.replace(config, id2label=("good", "bad"))
    kernel, bias = params["classifier"]["kernel"], params["classifier"]["bias"]
    params["classifier"] = {"kernel": 0.5 * kernel[:, ::-1].copy(), "bias": bias[::-1].copy()}
    tb.save_hf(tmp_path / "turned", config, params, tb.load_tokenizer(teacher, config))
    return tmp_path / "turned"


@pytest.fixture
def other_words(teacher: Path, tmp_path: Path) -> Path:
    """The teacher with another vocabulary: the rows of its word table, and so the ids of its words, are shuffled."""
    config, params = tb.load_hf(teacher)
    words = sorted(tb.load_tokenizer(teacher, config).get_vocab().items(), key=lambda item: item[1])
    special = sum(word.startswith("[") for word, _ in words[:5])
    order = np.concatenate([np.arange(special), special + np.random.default_rng(0).permutation(len(words) - special)])
    directory = tmp_path / "other"
    table = params["encoder"]["embeddings"]["word_embeddings"]
    table["embedding"] = np.concatenate([table["embedding"][order], table["embedding"][len(words) :]])
    tokenizer = tb.load_tokenizer(teacher, config)
    tb.save_hf(directory, config, params, tokenizer)
    described = json.loads((directory / "tokenizer.json").read_text())
    described["model"]["vocab"] = {words[old][0]: new for new, old in enumerate(order)}
    (directory / "tokenizer.json").write_text(json.dumps(described))
    (directory / "vocab.txt").write_text("\n".join(words[old][0] for old in order) + "\n")
    return directory


def logits_of(directory: Path, texts: Sequence[str]) -> np.ndarray:
    """A model's logits, with its classes in the order bad, good."""
    predictor = tb.load_predictor(directory, 16)
    logits = predictor.logits(encode([(text,) for text in texts], predictor.tokenizer, 16))
    return logits[:, [predictor.config.id2label.index(label) for label in ("bad", "good")]]


def texts_of(reviews: Path, split: str = "train") -> list[str]:
    return [line.split("\t")[0] for line in (reviews / f"{split}.tsv").read_text().splitlines()[1:]]


def taught(experiment: tb.Experiment, rows: np.ndarray) -> np.ndarray:
    inputs = load_inputs(experiment)
    examples = prepare(experiment, inputs, tb.sharding.make_mesh()).examples
    assert examples is not None
    return np.asarray(examples.batch(rows, 16, 0).targets)


@pytest.mark.parametrize("of", ["probabilities", pytest.param("logits", marks=pytest.mark.long)])
def test_targets_are_the_weighted_mean_of_the_members(
    of: str, teacher: Path, turned: Path, other_words: Path, blank_student: Path, reviews: Path, capsys: Any
) -> None:
    """Members have classes in another order, another vocabulary, or are functions; each one's scores are printed."""
    texts = texts_of(reviews)[:5]

    def says_good(rows: Sequence[str]) -> np.ndarray:
        return np.tile([0.75, 0.25], (len(rows), 1))  # in the order of its labels

    function = tb.FunctionTeacher(says_good, "says good", ("good", "bad"))
    members = (str(teacher), str(turned), str(other_words), function)
    weights = (1.0, 2.0, 3.0, 2.0)
    described = distillation(tb.Ensemble(members, weights, of), blank_student, reviews, stages=PREDICTION)
    got = taught(described, np.array([0, 1, -1, 3]))
    each = [logits_of(Path(str(m)), texts) for m in members[:3]]
    each.append(np.log(np.tile([0.25, 0.75], (5, 1))))
    shares = np.array(weights) / 8
    if of == "logits":
        expected = sum(share * logits for share, logits in zip(shares, each, strict=True))
    else:
        expected = np.log(sum(s * scipy.special.softmax(x, -1) for s, x in zip(shares, each, strict=True)))
    np.testing.assert_allclose(got[[0, 1, 3]], expected[[0, 1, 3]], rtol=1e-4, atol=1e-5)
    lines = capsys.readouterr().out
    for name in (*map(str, members), "ensemble of 4"):
        assert f"{name}: accuracy 0." in lines or f"{name}: accuracy 1." in lines


@pytest.mark.long
def test_an_ensemble_teaches_and_its_outputs_are_computed_once(
    teacher: Path, turned: Path, blank_student: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers are one member's, then predictions are the mean's; a member alone shares what is kept."""
    monkeypatch.setenv("TINYBERT_JAX_CACHE", str(tmp_path / "cache"))
    ensemble = tb.Ensemble((str(teacher), str(turned)), layer_teacher=str(turned))
    experiment = distillation(ensemble, Path("2x16"), reviews)
    result = tb.run(experiment, tmp_path / "run")
    assert result.teacher_scores is not None
    assert result.scores["accuracy"] > 0.8
    kept = sorted(path.name for path in (tmp_path / "cache" / "targets").iterdir())
    assert len(kept) == 3  # the layers of one, and the logits of two
    alone = dataclasses.replace(experiment, teacher=str(teacher), stages=experiment.stages[1:])
    tb.run(alone, tmp_path / "alone")
    assert sorted(path.name for path in (tmp_path / "cache" / "targets").iterdir()) == kept
    again = tb.run(experiment, tmp_path / "run", resume=True)
    assert again.scores == result.scores
    described = json.loads((tmp_path / "run" / "experiment.json").read_text())["experiment"]["teacher"]
    assert described["members"] == [str(teacher), str(turned)]
    assert described["weights"] == [0.5, 0.5]


@pytest.mark.long
def test_only_what_a_stage_reads_is_computed(
    teacher: Path, turned: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage of layers alone needs no outputs of the members, and the baseline of labels calls no function."""
    monkeypatch.setenv("TINYBERT_JAX_CACHE", str(tmp_path / "cache"))
    experiment = distillation(tb.Ensemble((str(teacher), str(turned))), Path("2x16"), reviews)
    tb.run(dataclasses.replace(experiment, stages=experiment.stages[:1]), tmp_path / "layers")
    assert len(list((tmp_path / "cache" / "targets").iterdir())) == 1

    def never(texts: Sequence[str]) -> np.ndarray:
        raise AssertionError("called")

    function = tb.FunctionTeacher(never, "never", ("bad", "good"))
    stages = (tb.Stage(tb.Supervised(), max_steps=2),)
    tb.run(distillation(function, teacher, reviews, stages=stages), tmp_path / "labels")


def test_numbers_from_labels_alone_have_no_such_teacher(teacher: Path, reviews: Path, tmp_path: Path) -> None:
    write_scored_reviews(tmp_path, reviews)
    function = tb.FunctionTeacher(lambda texts: [0.0] * len(texts), "zero")
    experiment = distillation(function, teacher, tmp_path, task="regression", stages=PREDICTION, preset="official")
    with pytest.raises(tb.InputError, match="preset 'official' learns numbers from labels alone"):
        load_inputs(experiment)


def test_the_mean_of_answers_is_over_positions_and_leaves_padding_out() -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 3, 5, 2)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])[:, :, None]
    mean = average([first, second], 1, mask, shares=[0.5, 0.5], of="probabilities")
    for row in range(3):
        real = int(mask[row].sum())
        expected = sum(scipy.special.softmax(x[row, :real], axis=0) for x in (first, second)) / 2
        np.testing.assert_allclose(np.exp(mean[row, :real]), expected, rtol=1e-5)
    numbers = average([np.array([1.0, 2.0]), np.array([3.0, 6.0])], None, shares=[0.75, 0.25], of="probabilities")
    np.testing.assert_allclose(numbers, [1.5, 3.0])


@pytest.mark.long
@pytest.mark.parametrize(("task", "write"), [("ner", write_conll), ("squad", write_squad)])
def test_tags_and_answers_have_ensembles_of_one_vocabulary(
    task: str, write: Any, pretrained: Path, tmp_path: Path
) -> None:
    data = write(tmp_path / "data", train=16, dev=16)
    common: dict[str, Any] = {"task": task, "source": tb.DataSource(data=str(data)), "max_length": 32}
    stages = (tb.Stage(tb.Supervised(), max_steps=8, learning_rate=3e-3),)
    models = []
    for seed in (0, 1):
        result = tb.run(
            tb.Experiment(**common, model=str(pretrained), stages=stages, seed=seed), tmp_path / f"t{seed}"
        )
        models.append(str(result.directory))
    experiment = tb.Experiment(**common, model=models[0], teacher=tb.Ensemble(tuple(models)), stages=PREDICTION)
    inputs = load_inputs(experiment)
    examples = prepare(experiment, inputs, tb.sharding.make_mesh()).examples
    assert examples is not None
    batch = examples.batch(np.array([1, 0]), 32, 0)
    members = [tb.load_predictor(model, 32, head=get_task(task).head) for model in models]
    rows = inputs.train
    alone = [jax.device_get(member.step(member.params, rows.batch(np.array([1, 0]), 32, 0))) for member in members]
    axis = 1 if task == "squad" else -1
    mask = np.asarray(batch.attention_mask)[:, :, None]
    expected = average(alone, axis, mask if axis == 1 else None, shares=[0.5, 0.5], of="probabilities")
    np.testing.assert_allclose(np.asarray(batch.targets) * mask, expected * mask, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": ("a",)}, "the teachers are a; an ensemble has two members or more, each once"),
        ({"members": ("a", "a")}, "the teachers are a, a; an ensemble has two members or more, each once"),
        ({"weights": (1.0,)}, r"weights are \(1.0,\); give 2 greater than 0"),
        ({"weights": (1.0, 0.0)}, r"weights are \(1.0, 0.0\); give 2 greater than 0"),
        ({"layer_teacher": "c"}, "the layers' teacher is 'c'; it must be one of a, b"),
    ],
)
def test_ensembles_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(tb.InputError, match=message):
        tb.Ensemble(**{"members": ("a", "b")} | changes)


def test_members_of_other_classes_are_refused() -> None:
    task = get_task("classification")
    teacher = Teacher("t", "", ("fair", "good"))
    with pytest.raises(tb.InputError, match=r"^t: has the classes fair, good, and first bad, good: take"):
        class_order(task, Teacher("first", "", ("bad", "good")), teacher)
    named = Teacher("t", "", ("NOT_ENTAILMENT", "ENTAILMENT"))
    assert class_order(get_task("rte"), Teacher("first", "", ("entailment", "not_entailment")), named).tolist() == [
        1,
        0,
    ]


def rows_of(texts: Sequence[str]) -> Rows:
    return Rows([(text,) for text in texts], None, ("bad", "good"), f"rows {len(texts)}", range(len(texts)))


def test_a_function_is_called_once_for_each_text_and_goes_on_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "SAVE_EVERY", 0.0)
    seen: list[str] = []
    texts = [f"text {number}" for number in range(10)]

    def fn(batch: Sequence[str]) -> np.ndarray:
        if len(seen) == 6 and not (tmp_path / "mended").exists():
            raise RuntimeError("the service is down")
        seen.extend(batch)
        return np.array([[int(text[-1]) / 10, 1 - int(text[-1]) / 10] for text in batch])

    settings = tb.FunctionTeacher(fn, "v1", ("bad", "good"), batch_size=3)
    with pytest.raises(RuntimeError, match="the service is down"):
        function_outputs(settings, rows_of(texts), tmp_path / "cache")
    (tmp_path / "mended").touch()
    settings = dataclasses.replace(settings, batch_size=2)
    outputs = function_outputs(settings, rows_of(texts), tmp_path / "cache")
    assert seen == texts
    np.testing.assert_allclose(np.exp(outputs[:, 0]), np.arange(10) / 10, atol=1e-6)
    assert function_outputs(settings, rows_of(texts), tmp_path / "cache").tolist() == outputs.tolist()
    assert seen == texts
    function_outputs(dataclasses.replace(settings, fingerprint="v2"), rows_of(texts), tmp_path / "cache")
    assert len(seen) == 20


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([[0.5, 0.5]], r"gave an array \(1, 2\) for 2 texts; it must be \(2, 2\)"),
        ([[0.5, 0.5], [0.5, 0.9]], r"gave \[0.5, 0.8\d*\] for 'b'; .* probabilities that add up to 1"),
        ([[0.5, 0.5], [1.5, -0.5]], r"gave \[1.5, -0.5\] for 'b'"),
        ([[float("nan"), 1.0], [0.5, 0.5]], r"gave \[nan, 1.0\] for 'a'"),
    ],
)
def test_what_a_function_gives_is_checked(outputs: Any, message: str, tmp_path: Path) -> None:
    settings = tb.FunctionTeacher(lambda texts: outputs, "f", ("bad", "good"))
    with pytest.raises(tb.InputError, match=f"function f: {message}"):
        function_outputs(settings, rows_of(["a", "b"]), tmp_path)


def test_a_function_teaches_pairs_and_numbers(blank_student: Path, reviews: Path, tmp_path: Path) -> None:
    write_scored_reviews(tmp_path, reviews)

    def length(texts: Sequence[str]) -> list[float]:
        return [float(len(text)) for text in texts]

    teacher = tb.FunctionTeacher(length, "length", batch_size=5)
    experiment = distillation(teacher, blank_student, tmp_path, task="regression", stages=PREDICTION)
    lesson = load_inputs(experiment).lessons[0]
    expected = [float(len(text)) for text in texts_of(tmp_path)[:4]]
    assert np.asarray(lesson.train.batch(np.arange(4), 16, 0).targets).tolist() == expected
    with pytest.raises(tb.InputError, match=r"function length: its labels are \(\); task 'classification' asks for"):
        load_inputs(dataclasses.replace(experiment, task="classification", source=tb.DataSource(data=str(reviews))))


@pytest.mark.long
def test_a_file_of_logits_gives_the_student_that_its_model_gives(
    teacher: Path, blank_student: Path, tmp_path: Path
) -> None:
    """Bit for bit: the logits of the model's kept outputs, written to a file."""
    data = write_reviews(tmp_path / "data")
    experiment = distillation(teacher, blank_student, data, stages=PREDICTION)
    inputs = load_inputs(experiment)
    texts = texts_of(data)
    model = inputs.teacher_model
    assert model is not None
    mesh = tb.sharding.make_mesh()
    objective = prediction_objective(inputs.config, model.config, compute=inputs.compute)
    kept = target_cache(experiment, inputs, objective, "prediction", inputs.teacher, model.params, mesh)
    logits = np.asarray(kept.with_targets(inputs.train, 1e9).targets(np.arange(len(texts)), 16))
    names = model.config.id2label
    lines = [
        {"text": text, "logits": dict(zip(names, row.tolist(), strict=True))}
        for text, row in zip(texts, logits, strict=True)
    ]
    unique = {line["text"]: line for line in lines}
    assert all(unique[line["text"]] == line for line in lines), "equal texts have equal logits, in any batch"
    (tmp_path / "logits.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    from_model = tb.run(experiment, tmp_path / "model")
    from_file = tb.run(dataclasses.replace(experiment, teacher=str(tmp_path / "logits.jsonl")), tmp_path / "file")
    weights = [(result.directory / "model.safetensors").read_bytes() for result in (from_model, from_file)]
    assert weights[0] == weights[1]


def test_a_run_resumes_where_members_have_moved_but_not_changed(
    teacher: Path, blank_student: Path, reviews: Path, tmp_path: Path
) -> None:
    places = [shutil.copytree(teacher, tmp_path / name) for name in ("a", "b")]
    stages = (tb.Stage("prediction", max_steps=1),)

    def run(resume: bool = False) -> tb.Result:
        members = tuple(map(str, places))
        ensemble = tb.Ensemble(members, (1.0, 2.0), layer_teacher=members[1])
        return tb.run(distillation(ensemble, blank_student, reviews, stages=stages), tmp_path / "run", resume)

    before = run()
    places = [shutil.move(place, f"{place}-moved") for place in places]
    assert run(resume=True).scores == before.scores
    config, params = tb.load_hf(places[1])
    tb.save_hf(places[1], config, jax.tree.map(lambda x: x + 1e-3, params))
    with pytest.raises(tb.InputError, match=r"cannot resume: the teacher .*a-moved, .*b-moved changed since the run"):
        run(resume=True)
