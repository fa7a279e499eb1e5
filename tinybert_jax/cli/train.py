"""The commands that train: finetune, pretrain, distill; and the options that they share."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any, Literal

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
from tinybert_jax.cli.stages import (
    Part,
    named_teacher,
    opening,
    read,
    reads,
    refuse_unread,
    stage_kinds,
    with_recombined,
)
from tinybert_jax.errors import InputError
from tinybert_jax.settings.choices import Preset, Start
from tinybert_jax.settings.experiment import Experiment
from tinybert_jax.settings.numbers import parse_number
from tinybert_jax.settings.objectives import WORDS, EmbeddingLoss, LayerMap, MaskedLM, RankingLoss
from tinybert_jax.settings.recipes import FINETUNING, choose_recipe
from tinybert_jax.settings.sources import CORPUS, CorpusSource
from tinybert_jax.settings.stages import Stage
from tinybert_jax.settings.tasks import get_task
from tinybert_jax.settings.teachers import Average

if TYPE_CHECKING:
    from tinybert_jax.models.config import BertConfig


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
    """Fine-tune a BERT on a task's labels, for example to make a teacher.

    Args:
        model: Hugging Face directory or hub id to start from.
        task: the task.
        source: where the rows are.
        run: settings of the run.
        devices: devices and processes.
        epochs: passes over the training rows. Default: 3, or 200 steps if that is more.
        max_steps: length of the training in steps, instead of --epochs.
        learning_rate: peak learning rate. It rises linearly over the first 10 % of the steps, then falls linearly to
            0. Default: 3e-5.
        evaluate_every: steps between evaluations on the dev rows. The best checkpoint is kept. Default: one epoch, or
            a twentieth of all steps if that is more.
    """
    part = Part(FINETUNING, has_stage=True, epochs=epochs, steps=max_steps, learning_rate=learning_rate)
    stage = part.stage(WORDS[get_task(task).kind.supervised_by](), evaluate_every=evaluate_every, **run.stage)
    _train(
        task,
        run,
        devices,
        opening((stage,), "fine-tuning" if part.takes_recipe else ""),
        source=source,
        model=model,
        stages=(stage,),
    )


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
    temperature: Moving = None,
    hard_weight: Moving = None,
    soft_weight: Moving = None,
    patience_weight: Moving = None,
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

    For example:

    tinybert distill --teacher runs/teacher/student --student 4x312 --task sst2 --data SST-2 --out runs/tiny

    Args:
        teacher: one teacher, or several whose outputs are averaged. A teacher is a model that was fine-tuned on the
            task (Hugging Face directory or hub id, of a family in docs/training.md); an exported model, such as an
            ONNX file; or a file of predictions, .jsonl, .tsv, .csv or .parquet (docs/llm-labels.md).
        student: a preset (tinybert-4l-312d, tinybert-6l-768d, tinybert-3l-192d); a size LAYERSxWIDTH, such as 6x384;
            or a model directory or hub id to start from. A size may go on with the feed-forward width (6x384x1536;
            default: the teacher's proportion) and the number of heads (6x384x1536x12; default: the teacher's if it
            divides the width, else fewer of about the same width). A directory whose name is a size is taken as a
            directory.
        task: the task.
        source: where the rows are.
        run: settings of the run.
        devices: devices and processes.
        methods: compression methods; docs/compression.md has their order. --prune needs a fine-tuned model as
            --student, such as the teacher; the others also take a preset or a size. The methods are applied before
            the first stage, --gradual and movement during it; then the compressed model is trained.
        one_by_one: with several compression methods: run all stages after each method, instead of once after all.
        stage: both: first transformer, then prediction. transformer: match embeddings, attention and hidden states;
            prediction: match the outputs; patient: PKD, match outputs, labels and states of [CLS], for a student as
            wide as the teacher; supervised: learn from labels alone, as a baseline. The --prediction-... options set
            the length and the learning rate of the last three.
        preset: details of the losses and the optimizer. default: the paper's losses, without padding; paper: padding
            is included; official: as in the authors' code, except that BERT's classifier is kept (docs/training.md).
        teacher_weights: with several teachers: one weight for each. Default: equal weights.
        teacher_average: with several teachers: whether to average their probabilities or their logits.
        layer_teacher: with several teachers: the one whose layers are learnt. Default: the first that is a model.
        layer_map: which teacher layers the student learns from. uniform: evenly spaced; top: the last ones; bottom:
            the first ones; or a list with one teacher layer for each student layer, counted from 1.
        start: initial values of a --student that is a preset or a size. random; copy: the mapped teacher layers, if
            all widths agree; spectral: the teacher projected onto the principal components of its hidden states, if
            the student is narrower and has as many heads; auto: the first of copy, spectral and random that is
            possible, but random with presets paper and official and if no stage learns from the teacher.
        augmented: a directory that `tinybert augment` wrote for these rows. All stages also train on its variants.
        transformer_epochs: epochs of the transformer stage. Default: the task's, or the recipe's least number of
            steps if that is more (docs/recipes.md).
        transformer_steps: length of the transformer stage in steps, instead of --transformer-epochs.
        transformer_learning_rate: learning rate of the transformer stage. It is constant. Default: the recipe's
            (docs/recipes.md).
        prediction_epochs: epochs of the other stages. Default: the task's, or the recipe's least number of steps if
            that is more.
        prediction_steps: length of the other stages in steps, instead of --prediction-epochs.
        prediction_learning_rate: peak learning rate of the other stages. It rises linearly over the first 10 % of the
            steps, then falls linearly to 0. Default: the recipe's.
        temperature: number that divides the logits of teacher and student in the soft loss. It may change during the
            stage: 4:1 goes from 4 to 1 linearly, 4:1:cosine along half a cosine. Default: 1; 10 in patient.
        hard_weight: weight of the loss against the labels. It may change during the stage, as --temperature. Default:
            0; 0.5 in patient.
        soft_weight: weight of the loss against the teacher's outputs. It may change likewise. Default: 1; 0.5 in
            patient.
        patience_weight: weight of the loss of [CLS] states in --stage patient. It may change likewise. Default: 100.
        temperature_squared: multiply the soft loss by temperature**2, so that a higher temperature does not lower its
            weight. Default: True with preset default, False with paper and official.
        embedding_loss: for tasks embedding and retrieval: what of the vectors is compared. mse: the numbers; cosine:
            the directions; similarity: the cosines between the texts of a batch, also for vectors of different
            widths. Default: mse.
        embedding_width: for tasks embedding and retrieval: make vectors of this width. The student learns the
            teacher's vectors projected onto that many principal directions. Default: the teacher's width.
        matryoshka_dims: with --embedding-loss similarity: lengths to which vectors can be truncated later, such as 128
            64. The first 128 and the first 64 numbers then learn the cosines too. Default: none.
        ranking_loss: for task ranking. margin_mse: the score margins of a relevant passage over the others of its
            query; listwise: the softmax over a query's passages at --temperature. Default: margin_mse.
        candidates: for task ranking: largest number of passages of a query that are compared at once. They are one
            row of a batch. Default: 8.
        evaluate_every: steps between evaluations on the dev rows, in all stages except transformer. The best
            checkpoint is kept. Default: one epoch, or a twentieth of the stage if that is more.
        teacher_cache_gb: disk space for teacher outputs (logits, hidden states, queries and keys), in GB. If they fit,
            a stage of more than one epoch computes them once; if not, or with 0, the teacher runs in every step. With
            preset default, all except logits are stored in bfloat16.
        report: write report.html and report.md at the end, as `tinybert report` does. Teacher and student are run on
            the dev rows again.
    """
    from tinybert_jax.students.start import copies

    kinds = stage_kinds(stage, get_task(task))
    distils = any(kind.distils for kind in kinds)
    config = _config((layer_teacher,) if layer_teacher else teacher) if distils else None
    recombined, few_pairs = 0, False
    if all(kind.distils for kind in kinds) and augmented is None:
        source, recombined, few_pairs = with_recombined(get_task(task), source, preset, teacher)
    recipe = choose_recipe(preset, student, get_task(task), copies(start, student, config), few_pairs)
    of_layers, of_outputs = (
        [kind for kind in kinds if kind.trains_head == trains_head] for trains_head in (False, True)
    )
    layers = Part(recipe.layers, bool(of_layers), transformer_epochs, transformer_steps, transformer_learning_rate)
    outputs = Part(recipe.outputs, bool(of_outputs), prediction_epochs, prediction_steps, prediction_learning_rate)
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
        "--transformer-...": layers.is_unread,
        "--prediction-...": outputs.is_unread,
        **{f"--{name.replace('_', '-')}": not any(reads(kind, name) for kind in kinds) for name in numbers},
        "--evaluate-every": not outputs.has_stage and evaluate_every is not None,
    }
    refuse_unread(stage, unread)
    stages = (
        *(layers.stage(kind(), schedule="constant", **run.stage) for kind in of_layers),
        *(
            outputs.stage(kind(**read(kind, **numbers)), evaluate_every=evaluate_every, **run.stage)
            for kind in of_outputs
        ),
    )
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
        opening=opening(stages, str(recipe) if layers.takes_recipe or outputs.takes_recipe else "", recombined),
        with_page=report,
        source=source,
        model=student,
        stages=stages,
        teacher=named_teacher(teacher, teacher_weights, teacher_average, layer_teacher),
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
    """Train on raw text: general distillation from a pretrained BERT, or masked-LM training.

    The paper's recipe is 3 epochs of Wikipedia with --batch-size 256 and --max-length 128; --accumulation-steps
    computes such a batch in parts. The expected cost is printed before training starts.

    Args:
        corpus: UTF-8 text files, also .gz, or one directory of shards that are built already.
        run: settings of the run.
        devices: devices and processes.
        teacher: Hugging Face directory or hub id of a BERT that was pretrained but not fine-tuned. Recipe distilbert
            needs one with a masked-LM head, recipe masked_lm needs none.
        student: a preset or a size, as in `tinybert distill`, or a model directory or hub id to start from.
        recipe: transformer: TinyBERT's general distillation, which matches embeddings, attention and hidden states;
            distilbert: DistilBERT's, which matches the teacher's predictions of masked tokens at temperature 2 and its
            last hidden states, and learns the masked tokens too, for a student of the teacher's width, without token
            types; masked_lm: masked-LM training without a teacher, for example to give a model the head that `tinybert
            augment` needs.
        preset: as in `tinybert distill`.
        layer_map: as in `tinybert distill`.
        start: as in `tinybert distill`. The paper's general distillation starts with random.
        epochs: passes over the corpus.
        max_steps: length of the training in steps, instead of --epochs.
        learning_rate: peak learning rate. It rises linearly over the first 10 % of the steps, then falls linearly to
            0.
        masking_probability: share of the tokens that are masked and predicted in masked_lm and distilbert, at most
            0.2. Recipe transformer masks nothing.
        one_document_per_line: every line is a document. Default: blank lines separate documents.
        pairs: make sequences of two texts, half of them A and its continuation B, half A and a random B, as in BERT's
            pretraining. Default: one text.
        short_sequence_probability: probability that a sequence is cut to a random shorter length.
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
        CORPUS,
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


def _config(teachers: tuple[str, ...]) -> BertConfig | None:
    """The config of the first teacher that is a model, or None. Unreadable teachers are refused later."""
    from tinybert_jax.models.files.directory import load_config
    from tinybert_jax.models.files.hub import resolve

    for teacher in teachers:
        with contextlib.suppress(InputError):
            return load_config(resolve(teacher))
    return None


def _train(
    task: str, run: RunFlags, devices: Devices, opening: str | None = None, with_page: bool = False, **described: Any
) -> None:
    """Run the experiment that a command's options describe. `opening` is printed when everything is checked."""
    if run.population < 1:
        raise InputError(f"--population {run.population}: a population has at least 1 member")
    default_length = 128 if task == CORPUS else get_task(task).max_length
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
    execute(members, run.out, run.resume, devices, opening, with_page)
