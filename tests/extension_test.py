"""An objective, a kind of task with its head, a family, a method and a teacher are each a row of a table.

The toys below are added from outside the package, through its tables alone, and run end to end.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tinybert_jax as tb
from tinybert_jax.compression.method import Method
from tinybert_jax.compression.table import METHODS
from tinybert_jax.models.families import FAMILIES
from tinybert_jax.models.heads import CLASSES, HEADS, Head
from tinybert_jax.models.parameters import apply_model
from tinybert_jax.objectives.objective import (
    CARRIED,
    Context,
    Objective,
    mean_over_examples,
    replace_student,
    split_carried,
    whole_student,
)
from tinybert_jax.objectives.table import OBJECTIVES
from tinybert_jax.settings.compression import CompressionSettings
from tinybert_jax.settings.objectives import ObjectiveSettings
from tinybert_jax.settings.tasks import TASKS, Kind
from tinybert_jax.tasks.classification import load_sequences
from tinybert_jax.tasks.kinds import LOADERS
from tinybert_jax.teachers.table import TEACHERS, TeacherKind
from tinybert_jax.teachers.teacher import Teacher


@dataclasses.dataclass(frozen=True)
class LogitError(ObjectiveSettings):
    """Squared error of the student's logits against the teacher's, scaled by a swept number."""

    name: ClassVar[str] = "logit_error"
    swept: ClassVar[tuple[str, ...]] = ("scale",)
    distils: ClassVar[bool] = True
    trains_head: ClassVar[bool] = True
    scale: float = 1.0


def logit_error(settings: LogitError, context: Context) -> Objective:
    model = HEADS[context.head].model
    assert context.teacher is not None
    student, teacher = model(context.student, context.compute), model(context.teacher, context.compute)

    def targets(teacher_params: Any, batch: tb.Batch) -> Any:
        return apply_model(teacher, teacher_params, batch, None, score_layers=()).logits

    def loss(trainable: Any, targets: Any, batch: tb.Batch, hyper: tb.Hyper, key: Any) -> Any:
        logits = apply_model(student, trainable, batch, key, score_layers=()).logits
        error = mean_over_examples(jnp.mean(jnp.square(logits - targets), axis=-1), batch)
        total = hyper.number("scale", settings) * error
        return total, {"loss": total, "progress": jnp.asarray(hyper.progress, jnp.float32)}

    return Objective(targets, loss, whole_student, replace_student)


class MeanClassifier(nn.Module):
    """Class logits from the mean of the last hidden states."""

    config: tb.BertConfig
    compute: tb.Compute = tb.Compute()

    @nn.compact
    def __call__(self, *args: Any, **kwargs: Any) -> tb.BertOutput:
        encoder = tb.BertModel(self.config, self.compute, add_pooler=False, name="encoder")
        out = encoder(*args, **kwargs)
        logits = nn.Dense(self.config.num_labels, name="mean_classifier")(out.last_hidden_state.mean(axis=1))
        return out._replace(logits=logits)


@dataclasses.dataclass(frozen=True)
class HalfOfClassifier(CompressionSettings):
    """Keep a share of the classifier's weights: those that were largest at the start."""

    name: ClassVar[str] = "half_of_classifier"
    share: float = 0.5


def half_of_classifier(settings: HalfOfClassifier) -> Method:
    def wrap(objective: Objective, config: tb.BertConfig, examples: Any) -> Objective:
        def masked(trainable: Any) -> Any:
            params, carried = split_carried(trainable)
            kernel = params["classifier"]["kernel"] * carried["mask"]
            return params | {"classifier": params["classifier"] | {"kernel": kernel}}

        def init(key: Any, student_params: Any) -> Any:
            trainable = objective.init(key, student_params)
            sizes = jnp.abs(trainable["classifier"]["kernel"])
            mask = (sizes >= jnp.quantile(sizes, 1 - settings.share)).astype(jnp.float32)
            return trainable | {CARRIED: {"mask": mask, "steps": jnp.zeros(())}}

        def advance(carried: Any, params: Any, hyper: Any) -> Any:
            return carried | {"steps": carried["steps"] + 1}

        return objective._replace(
            init=init,
            loss=lambda trainable, *more: objective.loss(masked(trainable), *more),
            export=lambda trainable, student: objective.export(masked(trainable), student),
            advance=advance,
        )

    return Method(wrap=wrap)


def majority(experiment: tb.Experiment) -> Teacher:
    """A teacher that says `good` of every row, as sure as can be."""
    logits = np.array([0.0, 5.0], np.float32)
    return Teacher("majority", "0", ("bad", "good"), outputs_of=lambda rows: np.tile(logits, (len(rows.texts), 1)))


@pytest.fixture
def common(reviews: Path) -> dict[str, Any]:
    return {"task": "classification", "source": tb.DataSource(data=str(reviews)), "max_length": 16}


def logged(out: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


@pytest.mark.long
def test_an_objective_is_settings_and_a_row(
    common: dict[str, Any], pretrained: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the cache, resumption, logs, a population over its number, and the stage's progress."""
    experiment = tb.Experiment(
        **common,
        model=str(pretrained),
        teacher=str(teacher),
        stages=(tb.Stage(LogitError(scale=0.5), epochs=12, learning_rate=3e-3, evaluate_every=24),),
    )
    with pytest.raises(tb.InputError, match="objective 'logit_error' has no row in the table of objectives"):
        tb.run(experiment, tmp_path / "run")
    monkeypatch.setitem(OBJECTIVES, LogitError, logit_error)
    result = tb.run(experiment, tmp_path / "run")
    assert result.scores["accuracy"] > 0.8
    assert logged(tmp_path / "run", "progress") == pytest.approx(
        [(step - 1) / 72 for step in (*range(10, 71, 10), 72)]
    )
    described = json.loads((tmp_path / "run" / "experiment.json").read_text())["experiment"]
    assert described["stages"][0]["objective"] == {"name": "logit_error", "scale": 0.5}
    weights = (result.directory / "model.safetensors").read_bytes()
    again = tb.run(experiment, tmp_path / "run", resume=True)
    assert (again.directory / "model.safetensors").read_bytes() == weights
    other = dataclasses.replace(
        experiment, stages=(dataclasses.replace(experiment.stages[0], objective=LogitError()),)
    )
    both = tb.run_population([experiment, other], tmp_path / "both")
    files = [(member.directory / "model.safetensors").read_bytes() for member in both]
    assert files[0] == weights != files[1]


@pytest.mark.long
def test_a_kind_of_task_is_a_head_a_loader_and_a_row(
    common: dict[str, Any], pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = Kind("mean_classification", "mean", has_columns=True, names_classes=True)
    head = Head(
        MeanClassifier,
        "mean_classifier",
        None,
        "mean classifier",
        "text-classification",
        "ForMeanClassification",
        losses=lambda config: CLASSES,
        labelled=True,
    )
    monkeypatch.setitem(HEADS, "mean", head)
    monkeypatch.setitem(LOADERS, kind.name, load_sequences)
    monkeypatch.setitem(TASKS, "mean", dataclasses.replace(TASKS["classification"], name="mean", kind=kind))
    stages = (tb.Stage(tb.Supervised(), epochs=6, learning_rate=3e-3),)
    result = tb.run(tb.Experiment(**common | {"task": "mean"}, model=str(pretrained), stages=stages), tmp_path / "run")
    assert result.scores["accuracy"] > 0.8
    config, params = tb.load_hf(result.directory)
    assert set(params) == {"encoder", "mean_classifier"}
    predictor = tb.load_predictor(result.directory, head="mean")
    assert predictor(["a tasty bag"])[0].label in config.id2label


@pytest.mark.long
def test_a_family_is_a_row(
    common: dict[str, Any], pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, params = tb.load_hf(pretrained)
    toy = FAMILIES["bert"]._replace(
        model_type="toy", architecture="Toy", prefix="toy", names=((("encoder",), ("toy",)),)
    )
    with pytest.raises(tb.InputError, match="model_type 'toy' is not supported; known are bert, albert"):
        dataclasses.replace(config, model_type="toy")
    monkeypatch.setitem(FAMILIES, "toy", toy)
    config = dataclasses.replace(config, model_type="toy")
    tb.save_hf(tmp_path / "toy", config, params, tb.load_tokenizer(pretrained, config))
    stages = (tb.Stage(tb.Supervised(), epochs=12, learning_rate=3e-3),)
    result = tb.run(tb.Experiment(**common, model=str(tmp_path / "toy"), stages=stages), tmp_path / "run")
    assert result.scores["accuracy"] > 0.8
    described = json.loads((result.directory / "config.json").read_text())
    assert (described["model_type"], described["architectures"]) == ("toy", ["ToyForSequenceClassification"])
    assert tb.load_hf(result.directory)[0].model_type == "toy"


@pytest.mark.long
def test_a_compression_method_is_settings_and_a_row(
    common: dict[str, Any], pretrained: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mask is carried through both stages and checkpoints, and acts in loss, scores and export."""
    methods = (HalfOfClassifier(),)
    stages = (tb.Stage(tb.Prediction(), epochs=12, learning_rate=3e-3, evaluate_every=24, compression=methods),)
    experiment = tb.Experiment(**common, model=str(pretrained), teacher=str(teacher), stages=stages)
    with pytest.raises(tb.InputError, match="compression 'half_of_classifier' has no row in the table of methods"):
        tb.run(experiment, tmp_path / "run")
    monkeypatch.setitem(METHODS, HalfOfClassifier, half_of_classifier)
    result = tb.run(experiment, tmp_path / "run")
    assert result.scores["accuracy"] > 0.8
    kernel = tb.load_hf(result.directory)[1]["classifier"]["kernel"]
    assert np.count_nonzero(kernel) == kernel.size // 2
    described = json.loads((tmp_path / "run" / "experiment.json").read_text())["experiment"]
    assert described["stages"][0]["compression"] == [{"share": 0.5, "name": "half_of_classifier"}]
    weights = (result.directory / "model.safetensors").read_bytes()
    again = tb.run(experiment, tmp_path / "run", resume=True)
    assert (again.directory / "model.safetensors").read_bytes() == weights
    both = tb.run_population([experiment, dataclasses.replace(experiment, seed=1, data_seed=0)], tmp_path / "both")
    assert (both[0].directory / "model.safetensors").read_bytes() == weights


@pytest.mark.long
def test_a_teacher_is_a_row(
    common: dict[str, Any], blank_student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TEACHERS, "majority", TeacherKind(lambda name: name == "majority", majority))
    experiment = tb.Experiment(
        **common,
        model=str(blank_student),
        teacher="majority",
        stages=(tb.Stage(tb.Prediction(), epochs=3, learning_rate=1e-2),),
    )
    result = tb.run(experiment, tmp_path / "run")
    assert result.teacher_scores is not None
    assert 0.4 < result.teacher_scores["accuracy"] < 0.6
    predict = tb.load_predictor(result.directory)
    assert {prediction.label for prediction in predict(["an awful bag", "a fine bag"])} == {"good"}
    layers = dataclasses.replace(experiment, stages=(tb.Stage(tb.Transformer()),))
    with pytest.raises(tb.InputError, match="stage 'transformer' compares layers, and the teacher has none"):
        tb.run(layers, tmp_path / "layers")


def test_what_a_method_carries_gets_no_gradient() -> None:
    """The step keeps it beside the parameters, where no optimizer finds it."""
    params, carried = split_carried({"classifier": {"kernel": 1}, CARRIED: {"mask": 2}})
    assert jax.tree.leaves(params) == [1]
    assert carried == {"mask": 2}
