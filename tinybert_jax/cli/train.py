"""The commands that train: finetune, pretrain, distill; and the options that they share."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, Literal

from tinybert_jax.cli.execute import execute
from tinybert_jax.cli.options import (
    DeviceOptions,
    Devices,
    MethodOptions,
    Moving,
    RunFlags,
    RunOptions,
    Source,
    TaskName,
)
from tinybert_jax.cli.stages import described, read, reads, refuse_unread, stage_kinds, takes_recipe
from tinybert_jax.errors import InputError
from tinybert_jax.settings.choices import Preset, Start
from tinybert_jax.settings.experiment import Experiment
from tinybert_jax.settings.numbers import parse_number
from tinybert_jax.settings.objectives import WORDS, EmbeddingLoss, LayerMap, MaskedLM, ObjectiveSettings, RankingLoss
from tinybert_jax.settings.recipes import FINETUNING, choose_recipe
from tinybert_jax.settings.sources import CorpusSource
from tinybert_jax.settings.stages import Stage
from tinybert_jax.settings.tasks import get_task
from tinybert_jax.settings.teachers import Average, Ensemble


def finetune(
    model: str,
    task: TaskName,
    source: Source,
    run: RunOptions,
    devices: DeviceOptions,
    epochs: int | None = None,
    max_steps: int | None = None,
    learning_rate: float | None = None,
    evaluate_every: int | None = None,
) -> None:
    """Train a BERT on a task's labels, for example to make a teacher.

    Args:
        model: a Hugging Face directory or hub id.
        task: a row of the task table.
        source: where the rows are.
        run: options of every training run.
        devices: options of every training run.
        epochs: passes over the training rows; default: 3, and at least 200 steps.
        max_steps: length of the training in steps, in place of `epochs`.
        learning_rate: peak of the learning rate, which rises linearly over the first 10 % of the steps and falls to 0;
            default: 3e-5.
        evaluate_every: steps between evaluations; default: an epoch, and at most 20 times. The best state is kept.
    """
    stage = Stage(
        WORDS[get_task(task).kind.supervised_by](),
        **FINETUNING.settings(epochs, max_steps, learning_rate),
        evaluate_every=evaluate_every,
        **run.stage,
    )
    _train(task, run, devices, source=source, model=model, stages=(stage,))


def distill(
    teacher: tuple[str, ...],
    student: str,
    task: TaskName,
    source: Source,
    run: RunOptions,
    devices: DeviceOptions,
    methods: MethodOptions,
    one_by_one: bool = False,
    stage: Literal["both", "transformer", "prediction", "patient", "supervised"] = "both",
    preset: Preset = "default",
    teacher_weights: tuple[float, ...] | None = None,
    teacher_average: Average = "probabilities",
    layer_teacher: str | None = None,
    layer_map: LayerMap = "uniform",
    start: Start = "auto",
    augmented: str | None = None,
    transformer_epochs: int | None = None,
    transformer_steps: int | None = None,
    transformer_learning_rate: float | None = None,
    prediction_epochs: int | None = None,
    prediction_steps: int | None = None,
    prediction_learning_rate: float | None = None,
    temperature: Moving | None = None,
    hard_weight: Moving | None = None,
    soft_weight: Moving | None = None,
    patience_weight: Moving | None = None,
    temperature_squared: bool | None = None,
    embedding_loss: EmbeddingLoss | None = None,
    embedding_width: int | None = None,
    matryoshka_dims: tuple[int, ...] | None = None,
    ranking_loss: RankingLoss | None = None,
    candidates: int | None = None,
    evaluate_every: int | None = None,
    teacher_cache_gb: float = 20.0,
    report: bool = True,
) -> None:
    """Distil a fine-tuned BERT into a small student: first its layers, then its predictions.

    Args:
        teacher: a model fine-tuned on the task, of a family in docs/training.md: Hugging Face directory or hub id; or
            an exported model, such as an ONNX file; or predictions of anything, a .jsonl, .tsv, .csv or .parquet file
            (docs/llm-labels.md). Several of them teach together, by the mean of their outputs.
        student: tinybert-4l-312d, tinybert-6l-768d, tinybert-3l-192d; or a size, LAYERSxWIDTH as 6x384, also with the
            feed-forward width (6x384x1536; default: in the teacher's proportion) and the heads (6x384x1536x12;
            default: the teacher's where they divide the width, else fewer of nearly their width); or a directory to
            start from, which comes first if it has a size's name.
        task: a row of the task table.
        source: where the rows are.
        run: options of every training run.
        devices: options of every training run.
        methods: as in `tinybert compress`, but what is left learns on. --student is a directory, for --prune a
            fine-tuned one such as the teacher's own. They act before the first stage, --gradual and movement in it.
        one_by_one: go through all stages after each method, instead of once after all of them.
        stage: both: layers ("transformer"), then predictions; or one of them; or another method in their place, for as
            many steps as --prediction-epochs or --prediction-steps say: patient: PKD, outputs, labels and the states
            of [CLS] together, for a student of the teacher's width; supervised: the labels alone, the baseline.
        preset: default: the paper's losses, padding left out; paper: padding included; official: the arithmetic and
            optimizer of the authors' code, but with BERT's own head, where theirs has a ReLU and no dropout.
        teacher_weights: a weight for each of several teachers; default: equal weights.
        teacher_average: what the mean of several teachers is of.
        layer_teacher: which of several teachers teaches its layers; default: the first that is a model.
        layer_map: the teacher layers that teach; a list names one for each student layer, counted from 1.
        start: the first values of a student that is given by preset or size. random; copy: the mapped layers of a
            teacher with the same widths; spectral: the teacher projected onto the principal components of its hidden
            states; auto: with preset default, copy if all widths agree, spectral if the student has the teacher's
            heads and is narrower, else random. With the presets paper and official, and if no stage learns from the
            teacher, auto is random.
        augmented: a directory that `tinybert augment` wrote for these rows; both stages also train on its variants.
        transformer_epochs: epochs of the first stage; default: the task's, and no fewer steps than the recipe's.
        transformer_steps: length of the first stage in steps, in place of its epochs.
        transformer_learning_rate: learning rate of the first stage, which is constant; default: the recipe's
            (docs/recipes.md).
        prediction_epochs: epochs of the second stage; default: the task's, and no fewer steps than the recipe's.
        prediction_steps: length of the second stage in steps, in place of its epochs.
        prediction_learning_rate: peak of the learning rate in the second stage, which rises linearly over the first
            10 % of the steps and falls to 0; default: the recipe's.
        temperature: divides both sides' logits in the second stage. A number, or one that moves over the stage's
            steps: 4:1 in a straight line, 4:1:cosine slowly at both ends. Default: 1; of patient 10.
        hard_weight: weight of the true labels in the second stage, beside the teacher's outputs; likewise. Default: 0;
            of patient 0.5.
        soft_weight: weight of the teacher's outputs in the second stage; likewise. Default: 1; of patient 0.5.
        patience_weight: weight of the states of [CLS] in patient; likewise. Default: 100.
        temperature_squared: multiply the term of the teacher's outputs by temperature**2, so that a temperature
            changes its form and not its weight; default: with preset default, and not with paper and official.
        embedding_loss: of task embedding, in the second stage. mse, the default: the error of the vectors; cosine: of
            their directions; similarity: of the cosines between the texts of a batch.
        embedding_width: of task embedding: project the teacher's vectors on so many of their principal directions, and
            learn these shorter ones; default: learn them as they are.
        matryoshka_dims: of task embedding, with --embedding-loss similarity: vectors that can be cut, as 128 64: their
            first 128 and 64 numbers learn the cosines of whole vectors too.
        ranking_loss: of task ranking, in the second stage. margin_mse, the default: the error of the margins of a
            relevant passage over the others of its query; listwise: of the distributions over all of them.
        candidates: of task ranking, in the second stage: the most passages of a query that are compared at once, which
            are one row of a batch; default: 8.
        evaluate_every: steps between evaluations in the second stage; default: an epoch, and at most 20 times. The
            best state is kept.
        teacher_cache_gb: disk space, in GB, for the teacher's outputs (logits, hidden states, queries and keys). If
            they fit, a stage of several epochs computes them once; 0: the teacher runs in every step. With preset
            default, all but the logits are kept in bfloat16.
        report: write report.html and report.md at the end, as `tinybert report` does, which runs teacher and student
            on the dev rows again.
    """
    kinds = stage_kinds(stage, get_task(task))
    distils = any(kind.distils for kind in kinds)
    width = _width((layer_teacher,) if layer_teacher else teacher) if distils else None
    recipe = choose_recipe(preset, student, get_task(task), start, width)
    of_first = transformer_epochs, transformer_steps, transformer_learning_rate
    of_second = prediction_epochs, prediction_steps, prediction_learning_rate
    no_first = all(kind.trains_head for kind in kinds)
    no_second = not any(kind.trains_head for kind in kinds)
    moving = {
        "temperature": temperature,
        "hard_weight": hard_weight,
        "soft_weight": soft_weight,
        "patience_weight": patience_weight,
    }
    numbers: dict[str, Any] = {
        name: parse_number(f"--{name.replace('_', '-')}", text) for name, text in moving.items() if text is not None
    }
    words = {
        "temperature_squared": temperature_squared,
        "embedding_loss": embedding_loss,
        "embedding_width": embedding_width,
        "matryoshka_dims": matryoshka_dims,
        "ranking_loss": ranking_loss,
        "candidates": candidates,
    }
    numbers |= {name: value for name, value in words.items() if value is not None}
    unread = {
        "--transformer-...": no_first and any(value is not None for value in of_first),
        "--prediction-...": no_second and any(value is not None for value in of_second),
        **{f"--{name.replace('_', '-')}": not any(reads(kind, name) for kind in kinds) for name in numbers},
        "--evaluate-every": no_second and evaluate_every is not None,
    }
    refuse_unread(stage, unread)

    def of_layers(kind: type[ObjectiveSettings]) -> Stage:
        return Stage(
            kind(),
            **recipe.layers.settings(transformer_epochs, transformer_steps, transformer_learning_rate),
            schedule="constant",
            **run.stage,
        )

    def of_outputs(kind: type[ObjectiveSettings]) -> Stage:
        return Stage(
            kind(**read(kind, **numbers)),
            **recipe.outputs.settings(prediction_epochs, prediction_steps, prediction_learning_rate),
            evaluate_every=evaluate_every,
            **run.stage,
        )

    stages = tuple(of_outputs(kind) if kind.trains_head else of_layers(kind) for kind in kinds)
    numbers_read = [numbers for numbers, unread in ((of_first, no_first), (of_second, no_second)) if not unread]
    note = None
    if any(takes_recipe(*numbers) for numbers in numbers_read):
        note = f"recipe: {recipe}: {'; '.join(map(described, stages))}"
    chosen = methods.settings()
    if one_by_one and len(chosen) < 2:
        raise InputError("--one-by-one trains after each of several methods, and fewer are given: leave it out")
    groups = [(method,) for method in chosen] if one_by_one else [chosen]
    stages = tuple(
        dataclasses.replace(stage, compression=() if i else group)
        for group in groups
        for i, stage in enumerate(stages)
    )
    _train(
        task,
        run,
        devices,
        note=note,
        with_page=report,
        source=source,
        model=student,
        stages=stages,
        teacher=_named_teacher(teacher, teacher_weights, teacher_average, layer_teacher),
        preset=preset,
        layer_map=layer_map,
        start=start,
        augmented=augmented,
        teacher_cache_gb=teacher_cache_gb,
    )


def pretrain(
    corpus: tuple[str, ...],
    run: RunOptions,
    devices: DeviceOptions,
    teacher: str | None = None,
    student: str = "tinybert-4l-312d",
    recipe: Literal["transformer", "masked_lm", "distilbert"] = "transformer",
    preset: Preset = "default",
    layer_map: LayerMap = "uniform",
    start: Start = "auto",
    epochs: int = 3,
    max_steps: int | None = None,
    learning_rate: float = 5e-5,
    masking_probability: float = 0.15,
    one_document_per_line: bool = False,
    pairs: bool = False,
    short_sequence_probability: float = 0.1,
    processes: int = 1,
    teacher_cache_gb: float = 20.0,
) -> None:
    """General distillation on raw text, from a BERT as pretrained; or masked-LM training of a BERT.

    The paper's recipe is --batch-size 256 and 3 epochs of Wikipedia at --max-length 128; --accumulation-steps computes
    such a batch in parts. What the training will cost is printed before it starts.

    Args:
        corpus: text files (UTF-8, .gz too), or one directory of shards built from them.
        run: options of every training run.
        devices: options of every training run.
        teacher: a BERT that was not fine-tuned: Hugging Face directory or hub id; masked_lm needs none, and that of
            distilbert must have a masked-LM head.
        student: a preset or a size as in `tinybert distill`, or a directory to start from, such as a model that is to
            get a masked-LM head.
        recipe: transformer: TinyBERT's general distillation: embeddings, attention and hidden states of the teacher;
            distilbert: DistilBERT's: the teacher's predictions of masked words at temperature 2, the words themselves,
            and the last hidden states. It keeps the teacher's width, and makes a student without token types.
            masked_lm: predict masked words, without a teacher, which gives a model the head that `tinybert augment`
            needs.
        preset: as in `tinybert distill`.
        layer_map: as in `tinybert distill`.
        start: as in `tinybert distill`; the paper's general distillation starts at random.
        epochs: passes over the corpus.
        max_steps: length of the training in steps, in place of `epochs`.
        learning_rate: peak of the learning rate, which rises linearly over the first 10 % of the steps and falls to 0.
        masking_probability: share of the tokens that masked_lm and distilbert predict, at most 0.2; transformer masks
            nothing.
        one_document_per_line: each line is a document; default: blank lines separate documents.
        pairs: sequences are pairs of text A and its continuation, or random text B, as in BERT's training.
        short_sequence_probability: share of the sequences that are cut to a random shorter length.
        processes: number of processes that tokenise the text.
        teacher_cache_gb: as in `tinybert distill`.
    """
    kind = WORDS[recipe]
    if not reads(kind, "masking_probability") and masking_probability != MaskedLM.masking_probability:
        raise InputError(f"--recipe {recipe} does not read --masking-probability: leave it out")
    trained = Stage(
        kind(**read(kind, masking_probability=masking_probability)),
        epochs=epochs,
        max_steps=max_steps,
        learning_rate=learning_rate,
        **run.stage,
    )
    text = CorpusSource(corpus, one_document_per_line, pairs, short_sequence_probability, processes)
    _train(
        "corpus",
        run,
        devices,
        source=text,
        model=student,
        stages=(trained,),
        teacher=teacher,
        preset=preset,
        layer_map=layer_map,
        start=start,
        teacher_cache_gb=teacher_cache_gb,
    )


def _named_teacher(
    names: tuple[str, ...], weights: tuple[float, ...] | None, average: Average, layer_teacher: str | None
) -> str | Ensemble:
    """The teacher that a command names: one, or several together."""
    if len(names) > 1:
        return Ensemble(names, weights, average, layer_teacher)
    if not names:
        raise InputError("--teacher names no teacher: give a directory, a hub id or a file of predictions")
    if weights is not None or average != Ensemble.average or layer_teacher is not None:
        raise InputError(
            "--teacher-weights, --teacher-average and --layer-teacher are for several teachers: leave them out"
        )
    return names[0]


def _width(teachers: tuple[str, ...]) -> int | None:
    """The hidden size of the first teacher that is a model; what cannot be read is refused later."""
    from tinybert_jax.models.files.directory import load_config
    from tinybert_jax.models.files.hub import resolve

    for teacher in teachers:
        with contextlib.suppress(InputError):
            return load_config(resolve(teacher)).hidden_size
    return None


def _train(
    task: str, run: RunFlags, devices: Devices, note: str | None = None, with_page: bool = False, **described: Any
) -> None:
    """Run the experiment that a command describes. The note is printed when everything is checked."""
    if run.population < 1:
        raise InputError(f"--population {run.population}: a population has at least 1 member")
    default_length = 128 if task == "corpus" else get_task(task).max_length
    experiment = Experiment(
        task=task,
        max_length=default_length if run.max_length is None else run.max_length,
        compute_dtype=run.compute_dtype,
        remat=run.remat,
        checkpoint_every=run.checkpoint_every,
        seed=run.seed,
        **described,
    )
    members = [experiment]
    for seed in range(run.seed + 1, run.seed + run.population):
        members.append(dataclasses.replace(experiment, seed=seed, data_seed=run.seed))
    execute(members, run.out, run.resume, devices, note, with_page)
