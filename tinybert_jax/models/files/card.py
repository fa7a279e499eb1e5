"""The metadata of a model card for the Hugging Face hub, and the names of models and files in a card."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tinybert_jax.errors import InputError, first_line, note
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.files.hub import CARD, hub_id, resolve
from tinybert_jax.models.heads import HEADS
from tinybert_jax.settings.sources import CorpusSource, DataSource
from tinybert_jax.settings.tasks import Task

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

# fields that are copied from the models it is made from, if all of them agree
INHERITED = ("language", "license", "license_name", "license_link")
ORDER = [
    *INHERITED,
    "library_name",
    "pipeline_tag",
    "tags",
    "base_model",
    "base_model_relation",
    "datasets",
    "metrics",
]
UNKNOWN = "unknown"  # the dataset of rows that are not on the hub
# ids of metrics on the hub that differ from the names here
METRIC_IDS = {"matthews": "matthews_correlation", "pearson": "pearsonr", "spearman": "spearmanr"}
METRIC_IDS |= {"micro_f1": "f1", "macro_f1": "f1"}
MODEL_FIELDS = ("model", "teacher", "members", "layer_teacher")
FILE_FIELDS = ("data", "train", "dev", "test", "unlabelled", "files", "augmented", "texts")

PREDICT = """predict = tb.load_predictor("this directory")
print(predict(["a text", "another text"]))  # or pairs of texts, if the task has pairs"""
EMBED = """predict = tb.load_predictor("this directory")
vectors = predict.embed(["a text", "another text"])  # float32 [n, d]"""
RANK = """predict = tb.load_predictor("this directory")
print(predict([("a query", "a passage"), ("a query", "another passage")]))  # higher is more relevant"""
LOAD = """config, params = tb.load_hf("this directory")"""


class Use(NamedTuple):
    """What a model card says about the use of a model."""

    code: str  # in Python, after the import of this package
    pipeline: str  # the hub's word for what it does
    load: str  # code that loads it without this package
    package: str = "transformers"  # which has `load`

    def library(self, config: BertConfig) -> str:
        """The hub's word for the package that loads a model of this config."""
        return self.package if config.loads_in_transformers else "tinybert_jax"

    def loading(self, config: BertConfig) -> str:
        """A line about other packages that load it."""
        if not config.loads_in_transformers:
            return "No class of `transformers` has its shape. `tinybert export` writes it for ONNX Runtime."
        line = f"`{self.package}` loads it too: `{self.load}`."
        if config.weight_bits is not None:
            line += " It computes in floats there; `tinybert export --to onnx-int8` keeps its int8 products."
        return line


def use_of(head: str, by_query: bool) -> Use:
    """The use of a model with a head, a row of HEADS. `by_query`: its task compares the passages of a query."""
    row = HEADS[head]
    if by_query:
        return Use(RANK, "text-ranking", 'CrossEncoder("this directory")', "sentence-transformers")
    if row.gives_vectors:
        return Use(EMBED, row.pipeline, 'SentenceTransformer("this directory")', "sentence-transformers")
    load = f'AutoModel{row.architecture.removeprefix("Model")}.from_pretrained("this directory")'
    return Use(PREDICT if row.on_tasks and not row.per_token else LOAD, row.pipeline, load)


def front_matter(
    title: str,
    config: BertConfig,
    made_from: Sequence[str],
    library: str,
    in_int8: bool = False,
    results: Sequence[EvalResult] = (),
    datasets: Sequence[str] = (),
    **fields: Any,
) -> str:
    """The YAML block at the beginning of a model card.

    Args:
        title: the model's name.
        config: the model's config.
        made_from: directories and hub ids of the models that it learnt from or started from. Hub ids become its
            `base_model`; for a directory, the `base_model` in its card is taken. Paths are not written.
        library: the library that loads it.
        in_int8: whether its products are in 8 bits.
        results: its scores.
        datasets: dataset ids on the hub; default: those of the results.
        fields: other fields of `huggingface_hub.ModelCardData`.
    """
    from huggingface_hub import ModelCardData

    sources = [read_metadata(model) for model in made_from]
    bases = dict.fromkeys(
        base for model, metadata in zip(made_from, sources, strict=True) for base in _bases(model, metadata)
    )
    inherited: dict[str, Any] = {}
    for field in INHERITED:
        values = [metadata.get(field) for metadata in sources]
        if values and all(value == values[0] for value in values):
            inherited[field] = values[0]
    quantized = in_int8 or config.weight_bits is not None
    named = dict.fromkeys(result.dataset_type for result in results if result.dataset_type != UNKNOWN)
    data = ModelCardData(
        **inherited,
        library_name=library,
        base_model=[*bases] if len(bases) > 1 else next(iter(bases), None),
        base_model_relation=("quantized" if quantized else "finetune") if bases else None,  # the hub's words
        datasets=[*(datasets or named)] or None,
        metrics=[*dict.fromkeys(result.metric_type for result in results)] or None,
        model_name=title if results else None,
        eval_results=[*results] or None,
        **fields,
    )
    return f"---\n{data.to_yaml(original_order=ORDER)}\n---\n"


def read_metadata(model: str) -> dict[str, Any]:
    """The metadata in the README.md of a model directory or hub model; {} if there is none or it cannot be read.

    `language` and `datasets` are always lists, even if the card has a single word.
    """
    from huggingface_hub import metadata_load

    try:
        metadata = metadata_load(resolve(model) / CARD) or {}
    except (InputError, FileNotFoundError):
        return {}
    except Exception as error:  # wrong YAML or encoding
        note(f"{model}: the metadata of its README.md cannot be read ({first_line(error)})")
        return {}
    for field in ("language", "datasets"):
        if field in metadata:  # in YAML 1.1, `no`, the code of Norwegian, means False
            metadata[field] = ["no" if value is False else value for value in _listed(metadata[field])]
    return metadata


def read_results(metadata: Mapping[str, Any]) -> list[EvalResult]:
    """The scores in the metadata of a card; [] if there are none, or not in the hub's format."""
    from huggingface_hub.repocard_data import model_index_to_eval_results

    try:
        return model_index_to_eval_results(metadata["model-index"])[1]
    except (KeyError, TypeError, ValueError, AttributeError):
        return []


def _bases(model: str, metadata: Mapping[str, Any]) -> Iterator[str]:
    """The model's hub id; for a directory, the hub ids in its card's `base_model`."""
    if name := hub_id(model):
        yield name
    else:
        yield from (name for base in _listed(metadata.get("base_model")) if (name := hub_id(str(base))))


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def task_results(
    task: Task, source: DataSource | CorpusSource, scores: Mapping[str, float], pipeline: str, suffix: str = ""
) -> list[EvalResult]:
    """A task's metrics on a dev set, for `front_matter`. In `scores`, their names end with `suffix`.

    The dataset is named if the source is the task's official data.
    """
    from huggingface_hub import EvalResult

    dataset: dict[str, Any] = {"dataset_type": UNKNOWN, "dataset_name": "own rows"}
    if isinstance(source, DataSource):
        if source.tfds is not None:
            dataset["dataset_name"] = source.tfds
        builder = (source.tfds or "").partition("/")[0].partition(":")[0]
        official = source.data is not None if source.tfds is None else task.hub_dataset.endswith(f"/{builder}")
        if task.hub_dataset and official and not source.names_columns:
            dataset = {"dataset_type": task.hub_dataset, "dataset_config": task.hub_config}
            dataset["dataset_name"] = f"{task.hub_dataset.rpartition('/')[2]} {task.hub_config}"
            dataset["dataset_split"] = task.tfds_dev if source.dev_share is None else "train"
    return [
        EvalResult(
            task_type=pipeline,
            metric_type=METRIC_IDS.get(name, name),
            metric_name=name,
            metric_value=round(scores[name + suffix], 4),
            **dataset,
        )
        for name in task.metrics
        if name + suffix in scores
    ]


def shown(name: str) -> str:
    """A model's name in a card: a hub id, preset or size as it is, or the last part of a path.

    The `student` of a run is shown by the run's name.
    """
    if hub_id(name) is not None:
        return name
    path = Path(os.path.abspath(os.path.expanduser(name)))
    of_run = path.name == "student" and (path.parent / "experiment.json").is_file()
    return path.parent.name if of_run else path.name


def without_places(settings: Any, field: str = "") -> Any:
    """Settings that a card may publish: paths of models and files are shortened to their last part."""
    if isinstance(settings, dict):
        return {name: without_places(value, name) for name, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [without_places(value, field) for value in settings]
    if not isinstance(settings, str):
        return settings
    if field in MODEL_FIELDS:
        return shown(settings)
    return Path(settings).name if field in FILE_FIELDS else settings
