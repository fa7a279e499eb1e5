"""A card tells the hub what a model is made from and how good it is, and nobody where its maker keeps files."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import distillation
from huggingface_hub import metadata_load

import tinybert_jax as tb
from tinybert_jax.models.files.card import front_matter, read_metadata, shown, task_results, without_places
from tinybert_jax.settings.tasks import TASKS, get_task
from tinybert_jax.training.run import Result

BASE = "google-bert/bert-base-uncased"
BASE_CARD = f"---\nbase_model: {BASE}\nlanguage: no\nlicense: apache-2.0\n---\n# A model\n"


def with_card(model: Path, folder: Path, card: str = BASE_CARD) -> Path:
    copied = Path(shutil.copytree(model, folder))
    (copied / "README.md").write_text(card)
    return copied


def files_with(text: str, directory: Path) -> list[str]:
    return [path.name for path in directory.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


@pytest.fixture(scope="module")
def student(
    teacher: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[tb.Experiment, Result, Path]:
    """A student of a teacher that names its base, its experiment, and the folder of both."""
    folder = tmp_path_factory.mktemp("private")
    taught = with_card(teacher, folder / "fine-tuned")
    stages = (tb.Stage("prediction", max_steps=2),)
    experiment = distillation(taught, Path("2x16"), reviews, stages=stages)
    return experiment, tb.run(experiment, folder / "tiny"), folder


@pytest.mark.long
def test_a_students_card_names_its_teachers_base_and_takes_over_what_it_says(
    student: tuple[tb.Experiment, Result, Path],
) -> None:
    _, result, _ = student
    metadata = metadata_load(result.directory / "README.md")
    score = {"name": "accuracy", "type": "accuracy", "value": round(result.scores["accuracy"], 4)}
    assert list(metadata.items()) == [
        ("language", ["no"]),
        ("license", "apache-2.0"),
        ("library_name", "transformers"),
        ("pipeline_tag", "text-classification"),
        ("tags", ["tinybert", "distillation"]),
        ("base_model", BASE),
        ("base_model_relation", "finetune"),
        ("metrics", ["accuracy"]),
        (
            "model-index",
            [
                {
                    "name": "2x16 on classification",
                    "results": [
                        {
                            "task": {"type": "text-classification"},
                            "dataset": {"name": "own rows", "type": "unknown"},
                            "metrics": [score],
                        }
                    ],
                }
            ],
        ),
    ]


@pytest.mark.long
def test_what_is_compressed_and_exported_says_so_too_and_int8_claims_no_scores_of_floats(
    student: tuple[tb.Experiment, Result, Path], reviews: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    _, result, _ = student
    source = tb.DataSource(data=str(reviews))
    texts = tmp_path / "texts.txt"
    texts.write_text("we bought lovely chips\n")
    methods = [tb.Vocabulary((str(texts),)), tb.Quantize()]
    chain = tb.compress(str(result.directory), "classification", source, methods, tmp_path / "int8")
    metadata = read_metadata(str(tmp_path / "int8"))
    assert (metadata["base_model"], metadata["base_model_relation"]) == (BASE, "quantized")
    [scored] = metadata["model-index"][0]["results"]
    assert scored["metrics"][0]["value"] == round(chain[-1].scores["accuracy"], 4)
    tb.export_model(str(result.directory), tmp_path / "floats", ["onnx"])
    tb.export_model(str(result.directory), tmp_path / "both", ["onnx", "onnx-int8"])
    tb.export_model(str(result.directory), tmp_path / "onnx", ["onnx-int8"])
    floats, both, onnx = (read_metadata(str(tmp_path / name)) for name in ("floats", "both", "onnx"))
    assert floats["model-index"][0]["results"] == read_metadata(str(result.directory))["model-index"][0]["results"]
    assert floats["model-index"][0]["name"] == "tiny, exported"
    assert "model-index" not in both
    assert "model-index" not in onnx
    assert [data["base_model_relation"] for data in (floats, both, onnx)] == ["finetune", "finetune", "quantized"]
    assert onnx["library_name"] == "transformers.js"
    assert onnx["license"] == "apache-2.0"
    assert "| onnx/model_quantized.onnx |" in (tmp_path / "onnx/README.md").read_text()
    assert '"texts.txt"' in (tmp_path / "int8/README.md").read_text()
    for name in ("int8", "floats", "both", "onnx"):
        assert not files_with(str(tmp_path.parent), tmp_path / name)


@pytest.mark.long
def test_no_file_of_a_student_says_where_its_models_and_rows_are(student: tuple[tb.Experiment, Result, Path]) -> None:
    _, result, folder = student
    private = str(folder.parent)
    assert not files_with(private, result.directory)
    assert private in (result.directory.parent / "experiment.json").read_text(), "which repeats the run"
    assert "distilled from `fine-tuned` by" in (result.directory / "README.md").read_text()


def test_no_field_of_the_settings_keeps_a_path() -> None:
    stages = (tb.Stage("prediction", compression=(tb.Quantize(),)), tb.Stage("prediction"))
    source = tb.DataSource(
        train="/my/train.tsv", dev="~/my/dev.tsv", test="my/test.tsv", unlabelled=("/my/a.txt",), id_column="my/id"
    )
    teachers = tb.Ensemble(("/my/first", "owner/name@main", "/my/answers.jsonl"), layer_teacher="/my/first")
    experiment = tb.Experiment("classification", source, "/my/student", stages, teachers)
    tfds = tb.DataSource(tfds="glue/sst2")
    corpus = tb.CorpusSource(("/my/a.txt", "/my/b.txt"))
    more = dataclasses.replace(experiment, source=tfds, augmented="/my/variants", teacher="/my/first", model="4x312")
    files = tb.Experiment("corpus", corpus, "/my/student", (tb.Stage("transformer"),), "/my/first")
    published = [without_places(settings.as_dict()) for settings in (experiment, more, files)]
    assert "/my" not in str(published)
    assert "my/test" not in str(published)
    assert published[0]["teacher"]["members"] == ["first", "owner/name@main", "answers.jsonl"]
    assert published[0]["source"]["unlabelled"] == ["a.txt"]
    assert published[0]["source"]["id_column"] == "my/id", "it is a name"
    assert (published[1]["model"], published[1]["source"]["tfds"]) == ("4x312", "glue/sst2")
    assert published[0]["stages"] == json.loads(json.dumps(experiment.as_dict()["stages"]))


@pytest.mark.parametrize(
    ("task", "source", "dataset"),
    [
        ("sst2", {"data": "d"}, ("nyu-mll/glue", "sst2", "validation")),
        ("mnli_mismatched", {"tfds": "glue/mnli"}, ("nyu-mll/glue", "mnli", "validation_mismatched")),
        ("squad2", {"data": "d"}, ("rajpurkar/squad_v2", "squad_v2", "validation")),
        ("sst2", {"data": "d", "dev_share": 0.1}, ("nyu-mll/glue", "sst2", "train")),
        ("sst2", {"data": "d", "text_columns": ("review",)}, ("unknown", None, None)),
        ("sst2", {"train": "t.tsv", "dev": "d.tsv"}, ("unknown", None, None)),
        ("sst2", {"tfds": "own/sst2"}, ("unknown", None, None)),
        ("classification", {"tfds": "imdb_reviews"}, ("unknown", None, None)),
    ],
)
def test_a_dataset_is_named_where_the_rows_are_the_tasks_official_ones(
    task: str, source: dict[str, Any], dataset: tuple[str | None, ...]
) -> None:
    row = get_task(task)
    scores = dict.fromkeys(row.metrics, 0.51239) | {"mean_f1_accuracy": 0.5}
    results = task_results(row, tb.DataSource(**source), scores, "text-classification")
    assert [result.metric_name for result in results] == list(row.metrics)
    assert {(x.dataset_type, x.dataset_config, x.dataset_split) for x in results} == {dataset}
    assert results[0].metric_value == 0.5124
    if task == "classification":
        assert results[0].dataset_name == "imdb_reviews"


def test_every_task_of_a_benchmark_has_its_data_on_the_hub() -> None:
    known = {name for name, task in TASKS.items() if task.hub_dataset}
    texts = {"classification", "multi_label", "regression", "ner", "embedding", "retrieval", "ranking"}
    assert set(TASKS) - known == texts


def test_hub_ids_are_bases_and_paths_are_not(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, _ = tb.load_hf(directory)

    def bases(*models: object) -> Any:
        (tmp_path / "README.md").write_text(
            front_matter("a", config, [str(model) for model in models], "transformers")
        )
        return read_metadata(str(tmp_path)).get("base_model")

    assert bases("owner/name@main") == "owner/name"
    assert bases("owner/name", BASE) == ["owner/name", BASE]
    assert bases(directory) is None
    (directory / "README.md").write_text("---\nbase_model: /home/me/model\n---\n")
    assert bases(directory) is None
    monkeypatch.chdir(tmp_path)
    (directory / "README.md").write_text("---\nbase_model: some/model\n---\n")
    assert bases(directory) == "some/model"
    (tmp_path / "some/model").mkdir(parents=True)
    assert bases(directory) is None, "a relative path is no hub id"


def test_a_licence_is_taken_over_where_all_models_say_the_same(directory: Path, tmp_path: Path) -> None:
    config, _ = tb.load_hf(directory)

    def license_of(*models: Path) -> Any:
        block = front_matter("a", config, [str(model) for model in models], "transformers").split("---")[1]
        return next((line for line in block.splitlines() if line.startswith("license")), None)

    apache, mit, silent = (tmp_path / name for name in ("apache", "mit", "silent"))
    for model, card in ((apache, BASE_CARD), (mit, BASE_CARD.replace("apache-2.0", "mit")), (silent, "# A model")):
        with_card(directory, model, card)
    assert license_of(apache) == license_of(apache, apache) == "license: apache-2.0"
    assert license_of(apache, mit) is license_of(apache, silent) is license_of() is None


@pytest.mark.parametrize("card", ["---\n- a list\n---\n", "---\n{: broken\n---\n", b"---\nlicense: \xff\n---\n"])
def test_a_card_that_cannot_be_read_stops_nothing(
    card: str | bytes, directory: Path, capsys: pytest.CaptureFixture
) -> None:
    (directory / "README.md").write_bytes(card if isinstance(card, bytes) else card.encode())
    assert read_metadata(str(directory)) == {}
    assert f"note: {directory}: the metadata of its README.md cannot be read" in capsys.readouterr().err


def test_one_word_of_a_card_is_a_list_of_one(directory: Path) -> None:
    (directory / "README.md").write_text("---\ndatasets: glue\nlanguage: [de, no]\n---\n")
    assert read_metadata(str(directory)) == {"datasets": ["glue"], "language": ["de", "no"]}


def test_a_path_is_shown_by_its_last_part_and_a_runs_student_by_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny/student").mkdir(parents=True)
    assert shown(str(tmp_path / "tiny/student")) == "student"
    (tmp_path / "tiny/experiment.json").write_text("{}")
    assert shown(str(tmp_path / "tiny/student")) == "tiny"
    monkeypatch.chdir(tmp_path / "tiny")
    assert shown("student") == "tiny"
    assert (shown("owner/name@main"), shown("4x312")) == ("owner/name@main", "4x312")
