"""Every kind of task, start and teacher through the real program, on synthetic data that a small model can learn."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import (
    BAD,
    GOOD,
    NER_WORDS,
    NEUTRAL,
    QA_WORDS,
    logged,
    write_conll,
    write_model,
    write_reviews,
    write_squad,
)

import tinybert_jax as tb
from tinybert_jax.data.augmentation import build
from tinybert_jax.inference import evaluate
from tinybert_jax.settings.choices import STUDENTS
from tinybert_jax.training.run import Result

LENGTH = 16  # one bucket, so one compilation
MIDDLE = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of short sentences out of three, so that every word follows from any other."""
    random = np.random.default_rng(0)
    words = [*NEUTRAL, *GOOD, *BAD]
    documents = []
    for _ in range(30):
        sentences = [np.roll(words, -random.integers(3))[:6] for _ in range(4)]
        documents.append("\n".join(" ".join(sentence) for sentence in sentences))
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(documents) + "\n")
    return path


@pytest.fixture(scope="module")
def general(text: Path, pretrained: Path, blank_student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of general distillation."""
    experiment = tb.Experiment(
        task="corpus",
        source=tb.CorpusSource((str(text),)),
        model=str(blank_student),
        teacher=str(pretrained),
        stages=(tb.Stage("transformer", epochs=8, batch_size=8, accumulation_steps=2, learning_rate=1e-2),),
        max_length=LENGTH,
    )
    out = tmp_path_factory.mktemp("general") / "run"
    assert tb.run(experiment, out).scores == {}
    return out


def test_a_short_run_on_raw_text_with_a_teacher_ends_with_a_model(
    text: Path, pretrained: Path, blank_student: Path, tmp_path: Path
) -> None:
    """Raw text is no row of the task table: nothing on the way may look its task up."""
    experiment = tb.Experiment(
        task="corpus",
        source=tb.CorpusSource((str(text),)),
        model=str(blank_student),
        teacher=str(pretrained),
        stages=(tb.Stage("transformer", max_steps=2, batch_size=8),),
        max_length=LENGTH,
    )
    result = tb.run(experiment, tmp_path / "run")
    assert result.scores == {}
    assert "README.md" in {path.name for path in result.directory.iterdir()}


@pytest.mark.long
def test_general_distillation_lowers_every_term_and_its_student_starts_a_task(
    general: Path, teacher: Path, reviews: Path, tmp_path: Path
) -> None:
    lines = logged(general)
    for term in ("embedding", "attention/1", "attention/2", "hidden/1", "hidden/2"):
        assert lines[-1][term] < lines[0][term], term
    assert not any("encoder" not in name for name in tb.load_hf(general / "student")[1])
    experiment = tb.Experiment(
        task="classification",
        source=tb.DataSource(data=str(reviews)),
        model=str(general / "student"),
        teacher=str(teacher),
        stages=(tb.Stage("prediction", max_steps=2),),
        max_length=LENGTH,
    )
    assert "accuracy" in tb.run(experiment, tmp_path / "run").scores


@pytest.mark.long
def test_masked_lm_training_prints_its_cost_and_gives_a_checkpoint_its_head(
    text: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    experiment = tb.Experiment(
        task="corpus",
        source=tb.CorpusSource((str(text),)),
        model=str(pretrained),
        stages=(tb.Stage("masked_lm", epochs=20, batch_size=8, learning_rate=1e-2),),
        max_length=LENGTH,
    )
    directory = tb.run(experiment, tmp_path / "run").directory
    printed = capsys.readouterr().out
    assert "1-masked_lm: 180 steps, " in printed  # what it costs, before it starts
    assert "FLOPs; at the measured" in printed
    losses = [line["loss"] for line in logged(tmp_path / "run")]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert "cls" in tb.load_hf(directory)[1]
    assert "parameters, trained on masked words, with tinybert_jax." in (directory / "README.md").read_text()
    assert json.loads((directory / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]


MNLI = ("entailment", "neutral", "contradiction")


def write_mnli(directory: Path) -> Path:
    """Rows whose second sentence tells the label; the mismatched ones are labelled the other way round."""
    random = np.random.default_rng(0)
    telling = dict(zip(MNLI, ("lovely", "bag", "awful"), strict=True))
    directory.mkdir(parents=True)
    for name, n in (("train", 96), ("dev_matched", 24), ("dev_mismatched", 24), ("test_matched", 4)):
        lines = ["sentence1\tsentence2" + ("" if name.startswith("test") else "\tgold_label")]
        for i in range(n):
            label = MNLI[i % 3]
            first, second = (" ".join(random.choice(["the", "was", "very", "we"], 2)) for _ in range(2))
            written = MNLI[(i + 1) % 3] if name == "dev_mismatched" else label
            gold = "" if name.startswith("test") else f"\t{written}"
            lines.append(f"{first}\t{second} {telling[label]}{gold}")
        (directory / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    (directory / "test_mismatched.tsv").write_text((directory / "test_matched.tsv").read_text())
    return directory


@pytest.fixture(scope="module")
def mnli(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[tb.DataSource, Path, Result]:
    """MNLI in the GLUE layout, the directory of a run on it, and its result."""
    path = tmp_path_factory.mktemp("mnli")
    source = tb.DataSource(data=str(write_mnli(path / "MNLI")))
    experiment = tb.Experiment(
        task="mnli",
        source=source,
        model=str(pretrained),
        stages=(tb.Stage("supervised", epochs=16, batch_size=16, learning_rate=3e-3, evaluate_every=24),),
        max_length=LENGTH,
    )
    return source, path / "run", tb.run(experiment, path / "run")


@pytest.mark.long
def test_mnli_selects_on_the_matched_set_scores_both_and_writes_both_submissions(
    mnli: tuple[tb.DataSource, Path, Result], tmp_path: Path
) -> None:
    source, out, result = mnli
    assert result.scores["accuracy"] > 0.9
    assert result.scores["accuracy_mismatched"] < 0.1
    assert result.scores["accuracy"] == max(line.get("dev/accuracy", 0) for line in logged(out))
    assert evaluate.evaluate(str(result.directory), "mnli", source) == result.scores
    assert not evaluate.evaluate(
        str(result.directory), "mnli", source, "test", predictions=tmp_path, needs_scores=False
    )
    for name in ("MNLI-m.tsv", "MNLI-mm.tsv"):
        lines = (tmp_path / name).read_text().splitlines()
        assert lines == ["index\tprediction", *(f"{i}\t{MNLI[i % 3]}" for i in range(4))]
    (Path(str(source.data)) / "dev_mismatched.tsv").rename(tmp_path / "away.tsv")
    again = tmp_path / "again"
    again.mkdir()
    evaluate.evaluate(str(result.directory), "mnli", source, "test", predictions=again, needs_scores=False)
    assert (again / "MNLI-mm.tsv").is_file(), "whether there is a second test set does not depend on the dev sets"
    (tmp_path / "away.tsv").rename(Path(str(source.data)) / "dev_mismatched.tsv")


@pytest.mark.long
def test_a_checkpoint_with_labels_in_another_order_is_matched_by_name(
    mnli: tuple[tb.DataSource, Path, Result], tmp_path: Path
) -> None:
    """The original code took ids as they came: its users saw 10 to 44 % on MNLI."""
    source, _, result = mnli
    config, params = tb.load_hf(result.directory)
    order = np.array([2, 0, 1])
    head = params["classifier"]
    params["classifier"] = {"kernel": head["kernel"][:, order], "bias": head["bias"][order]}
    config = dataclasses.replace(config, id2label=tuple(MNLI[i].upper() for i in order))
    tb.save_hf(tmp_path / "hub", config, params, tb.load_tokenizer(result.directory, config))
    assert evaluate.evaluate(str(tmp_path / "hub"), "mnli", source) == result.scores


def distilled(teacher: Path, student: str, reviews: Path, out: Path, **changes: object) -> Result:
    settings = {
        "stages": (
            tb.Stage("transformer", epochs=4, learning_rate=1e-2, schedule="constant"),
            tb.Stage("prediction", epochs=8, learning_rate=1e-2),
        ),
    } | changes
    experiment = tb.Experiment(
        task="classification",
        source=tb.DataSource(data=str(reviews)),
        model=student,
        teacher=str(teacher),
        max_length=LENGTH,
        **settings,
    )
    return tb.run(experiment, out)


@pytest.mark.long
def test_a_teacher_of_another_vocabulary_teaches_its_predictions_and_no_more(
    teacher: Path, reviews: Path, tmp_path: Path
) -> None:
    student = write_model(tmp_path / "other", words=("tea", "rice"), **SMALL)
    prediction = (tb.Stage("prediction", epochs=12, learning_rate=1e-2, evaluate_every=36),)
    result = distilled(teacher, str(student), reviews, tmp_path / "run", stages=prediction)
    assert result.scores["accuracy"] > 0.9
    with pytest.raises(tb.InputError, match=r"different vocabularies, .* only a sequence task's predictions"):
        distilled(teacher, str(student), reviews, tmp_path / "both")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A task with files of its own layout."""

    task: str
    write: Callable[[Path], Path]
    words: tuple[str, ...]
    dev_file: str
    predictions: Callable[[Path], int]  # how many a file holds


KINDS = [
    Kind("squad", write_squad, QA_WORDS, "dev-v1.1.json", lambda path: len(json.loads(path.read_text()))),
    Kind("ner", write_conll, NER_WORDS, "dev.txt", lambda path: path.read_text().strip().count("\n\n") + 1),
]


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.task)
def test_answers_and_tags_are_learnt_distilled_and_written(kind: Kind, tmp_path: Path) -> None:
    source = tb.DataSource(data=str(kind.write(tmp_path / "data")))
    model = write_model(tmp_path / "bert", words=kind.words, **MIDDLE)
    # of preset paper, batches have one length, and are compiled once
    common = {"task": kind.task, "source": source, "model": str(model), "max_length": 24, "preset": "paper"}
    learning = tb.Stage("supervised", epochs=20, batch_size=16, learning_rate=5e-3, evaluate_every=80)
    teacher = tb.run(tb.Experiment(stages=(learning,), **common), tmp_path / "teacher")
    assert teacher.scores["f1"] > 0.8
    stages = (tb.Stage("prediction", epochs=20, batch_size=16, learning_rate=5e-3, evaluate_every=80),)
    student = tb.run(tb.Experiment(stages=stages, teacher=str(teacher.directory), **common), tmp_path / "student")
    assert student.scores["f1"] > 0.7
    predictions = tmp_path / "predictions"
    scores = evaluate.evaluate(str(student.directory), kind.task, source, predictions=predictions)
    assert scores == student.scores
    assert kind.predictions(predictions) == 48


@pytest.mark.long
def test_answers_may_be_missing_in_squad_2(tmp_path: Path) -> None:
    source = tb.DataSource(data=str(write_squad(tmp_path / "data", "2.0")))
    model = write_model(tmp_path / "bert", words=QA_WORDS, **MIDDLE)
    stages = (tb.Stage("supervised", epochs=20, batch_size=16, learning_rate=5e-3, evaluate_every=80),)
    experiment = tb.Experiment(
        task="squad2", source=source, model=str(model), stages=stages, max_length=24, preset="paper"
    )
    result = tb.run(experiment, tmp_path / "run")
    assert result.scores["exact_match"] > 0.7
    evaluate.evaluate(str(result.directory), "squad2", source, predictions=tmp_path / "p.json")
    assert "" in json.loads((tmp_path / "p.json").read_text()).values()


@pytest.fixture(scope="module")
def augmented(pretrained: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Candidates for the reviews, from a random masked-LM head on `pretrained`."""
    path = tmp_path_factory.mktemp("augmented")
    config, params = tb.load_hf(pretrained)
    head = tb.init_params(tb.BertForMaskedLM(config), jax.random.key(0))["cls"]
    tb.save_hf(path / "mlm", config, params | {"cls": head}, tb.load_tokenizer(pretrained, config))
    source = tb.DataSource(data=str(reviews))
    samples = build.build(str(path / "mlm"), "classification", source, path / "table", variants=3, max_length=LENGTH)
    assert [len(variants) for variants in samples] == [3, 3, 3]
    return path / "table"


@pytest.mark.long
def test_as_in_the_authors_code_a_row_has_its_variants_beside_itself_with_preset_official(
    augmented: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model, source, out = str(augmented.parent / "mlm"), tb.DataSource(data=str(reviews)), tmp_path / "table"
    settings = {"preset": "official", "max_length": LENGTH}
    samples = build.build(model, "classification", source, out, variants=2, tsv=tmp_path / "all.tsv", **settings)
    assert [len(variants) for variants in samples] == [3, 3, 3]
    assert len((tmp_path / "all.tsv").read_text().splitlines()) == 1 + 192 * 3
    samples = build.build(model, "classification", source, out, variants=1, **settings)
    assert [len(variants) for variants in samples] == [2, 2, 2]
    assert "give --variants 2 again" in capsys.readouterr().err
    described = json.loads((out / "augmentation.json").read_text())
    (out / "augmentation.json").write_text(json.dumps(described | {"format_version": 1}))  # with other stop-words
    with pytest.raises(tb.InputError, match="whose format_version is 1, not 2: give another --out"):
        build.build(model, "classification", source, out, variants=1, **settings)


@pytest.mark.long
def test_a_run_trains_on_augmented_rows_and_resumes_to_the_same_bits(
    augmented: Path, teacher: Path, blank_student: Path, reviews: Path, tmp_path: Path
) -> None:
    stage = tb.Stage("prediction", epochs=1, learning_rate=1e-2, evaluate_every=9)
    experiment = tb.Experiment(
        task="classification",
        source=tb.DataSource(data=str(reviews)),
        model=str(blank_student),
        teacher=str(teacher),
        stages=(stage,),
        augmented=str(augmented),
        max_length=LENGTH,
        checkpoint_every=5,
    )
    whole = tb.run(experiment, tmp_path / "whole")
    assert logged(tmp_path / "whole")[-1]["step"] == 192 * 3 // 32  # three variants of each row are an epoch
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    for newer in (tmp_path / "broken/checkpoints/1-prediction").iterdir():
        if newer.name.isdigit() and int(newer.name) > 15:
            shutil.rmtree(newer)
    again = tb.run(experiment, tmp_path / "broken", resume=True)
    weights = [(result.directory / "model.safetensors").read_bytes() for result in (whole, again)]
    assert weights[0] == weights[1]


def test_candidates_of_other_rows_are_refused(
    augmented: Path, teacher: Path, blank_student: Path, tmp_path: Path
) -> None:
    other = write_reviews(tmp_path / "other", train=8)
    with pytest.raises(tb.InputError, match="rows"):
        distilled(teacher, str(blank_student), other, tmp_path / "run", augmented=str(augmented))


def test_a_model_without_a_masked_lm_head_cannot_augment(pretrained: Path, reviews: Path, tmp_path: Path) -> None:
    with pytest.raises(tb.InputError, match=r"holds no masked-LM head; train one first: tinybert"):
        build.build(str(pretrained), "classification", tb.DataSource(data=str(reviews)), tmp_path / "table")
    assert not (tmp_path / "table").exists()


@pytest.mark.long
def test_a_teacher_with_other_heads_teaches_its_relations(
    teacher: Path, blank_student: Path, reviews: Path, tmp_path: Path
) -> None:
    student = shutil.copytree(blank_student, tmp_path / "two heads")
    config = json.loads((student / "config.json").read_text())
    (student / "config.json").write_text(json.dumps(config | {"num_attention_heads": 2}))
    stages = (tb.Stage("transformer", epochs=4, learning_rate=1e-2, schedule="constant"),)
    distilled(teacher, str(student), reviews, tmp_path / "run", stages=stages)
    first, *_, last = (line for line in logged(tmp_path / "run") if "relation/1" in line)
    assert last["relation/1"] < first["relation/1"]


def test_a_misspelt_preset_is_told_what_there_is(teacher: Path, reviews: Path, tmp_path: Path) -> None:
    with pytest.raises(tb.InputError, match="unknown student preset 'tinybert-3l-192'; known are tinybert-4l-312d"):
        distilled(teacher, "tinybert-3l-192", reviews, tmp_path / "run")


@pytest.mark.long
def test_a_start_is_nearer_to_the_teacher_than_chance(
    teacher: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STUDENTS, "narrow", SMALL)
    monkeypatch.setitem(STUDENTS, "shallow", MIDDLE)
    first: dict[tuple[str, str], float] = {}
    one = (tb.Stage("transformer", max_steps=1, learning_rate=1e-9),)
    for preset, start in (("narrow", "random"), ("narrow", "spectral"), ("shallow", "random"), ("shallow", "copy")):
        out = tmp_path / preset / start
        distilled(teacher, preset, reviews, out, stages=one, start=start)
        first[preset, start] = logged(out)[0]["loss"]
    assert first["narrow", "spectral"] < 0.3 * first["narrow", "random"]
    assert first["shallow", "copy"] < first["shallow", "random"]
    with pytest.raises(tb.InputError, match="start 'copy' needs equal hidden_size"):
        distilled(teacher, "narrow", reviews, tmp_path / "no", stages=one, start="copy")
