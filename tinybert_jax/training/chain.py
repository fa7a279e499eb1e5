"""The stages of a run with the compression methods between them, and the model's size and scores after each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from tinybert_jax.batch import Params
from tinybert_jax.compression.links import Link, line, link
from tinybert_jax.compression.table import build_method, check_methods
from tinybert_jax.data.batches import stage_steps
from tinybert_jax.devices import processes
from tinybert_jax.devices.sharding import place, tree_shardings
from tinybert_jax.errors import InputError
from tinybert_jax.inference.step import make_predict_step, predict_logits
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.heads import HEADS
from tinybert_jax.models.parameters import resize_vocabulary
from tinybert_jax.objectives.projections import without_projections
from tinybert_jax.settings.experiment import Experiment
from tinybert_jax.tasks.split import Split
from tinybert_jax.training.diverged import Diverged, DivergedMembers
from tinybert_jax.training.inputs import Inputs
from tinybert_jax.training.loop import Run, batching, check_params, make_objective, methods_in, train_stage
from tinybert_jax.training.teaching import Taught, eval_batch_size

Outputs = Callable[[Params, Split], np.ndarray]


class Trained(NamedTuple):
    """The members' models after all stages."""

    inputs: Inputs  # with the config of the trained models
    models: list[Params]
    outputs: Outputs  # `(placed params, split) -> logits`
    chains: list[list[Link]]  # for each member, the model after every method and stage; empty without methods


def check_compression(experiment: Experiment, inputs: Inputs, members: int) -> None:
    """Refuse methods that are not possible in a run, on this model, or at their place.

    Raises:
        InputError: there is such a method.
    """
    check_methods(experiment.compression, inputs.config, inputs.head)
    last = max((i for i, stage in enumerate(experiment.stages) if stage.compression), default=0)
    before = [build_method(settings) for stage in experiment.stages[:last] for settings in stage.compression]
    if members > 1 and any(method.finish is not None for method in before):
        raise InputError("what is pruned in training leaves members of a population unlike: train each alone")
    for index, stage in enumerate(experiment.stages):
        acting = ""
        for settings in stage.compression:
            if build_method(settings).retokenize is not None:
                raise InputError(
                    f"compression {settings.name!r} changes the tokens, which a teacher's would no longer be: apply it"
                    " to the trained model, by `tinybert compress`"
                )
            if settings.reads_head and not (inputs.keep_head or _heads_trained(experiment, index)):
                raise InputError(
                    f"compression {settings.name!r} needs a model that is fine-tuned on the task, and"
                    f" {experiment.model!r} is not: give a directory of tinybert finetune, such as the teacher's"
                )
            if acting and not settings.keeps_shapes:
                raise InputError(
                    f"compression {settings.name!r} cannot stand behind {acting!r}, which acts while the same stage"
                    " trains: give it a stage of its own (--one-by-one)"
                )
            steps = stage_steps(stage, len(batching(inputs, stage)(inputs.examples(stage))))
            if steps < settings.min_steps:
                raise InputError(
                    f"compression {settings.name!r} acts while its stage trains, in at least"
                    f" {settings.min_steps} steps, and this one has {steps}: train longer"
                )
            acting = settings.name if settings.min_steps else acting


def _heads_trained(experiment: Experiment, index: int) -> bool:
    return any(stage.objective.trains_head for stage in experiment.stages[:index])


def finished(experiment: Experiment, index: int, config: BertConfig, params: Params) -> tuple[BertConfig, Params]:
    """A model after the methods that act during stage number `index` are finished."""
    for method in methods_in(experiment, index):
        if method.finish is not None:
            config, params = method.finish(config, params)
    return config, params


def compressed(
    experiment: Experiment,
    index: int,
    inputs: Inputs,
    models: list[Params],
    watch: Callable[[str, Inputs, list], None],
) -> tuple[Inputs, list[Params]]:
    """The models after the methods of a stage are applied. First, methods of earlier stages are finished.

    Raises:
        InputError: a method cannot be applied to the model, or members would get different sizes.
    """
    if not experiment.stages[index].compression:
        return inputs, models
    if index:
        changed = [finished(experiment, index - 1, inputs.config, model) for model in models]
        inputs, models = _changed(inputs, changed, "what was pruned")
    for settings in experiment.stages[index].compression:
        apply = build_method(settings).apply
        applied = [apply(inputs.config, model, inputs.train) for model in models]
        # on different processors, singular vectors may have different signs
        changed = [(config, processes.tree_from_primary(model)) for config, model in applied]
        inputs, models = _changed(inputs, changed, f"compression {settings.name!r}")
        watch(settings.name, inputs, models)
    return inputs, models


def _changed(inputs: Inputs, changed: Sequence[tuple], name: str) -> tuple[Inputs, list[Params]]:
    if any(config != changed[0][0] for config, _ in changed):
        raise InputError(f"{name} gives the members of the population unlike sizes: train each alone")
    return dataclasses.replace(inputs, config=changed[0][0]), [model for _, model in changed]


class Watch:
    """In runs that compress: records the members' models after each method and stage, and prints a line for each."""

    def __init__(self, experiment: Experiment, inputs: Inputs, diverged: DivergedMembers, mesh: Mesh) -> None:
        self.active = bool(experiment.compression)
        self.has_head = inputs.keep_head and "dev" in inputs.dev
        self.chains: list[list[Link]] = [[] for _ in diverged.flags]
        self._mesh, self._diverged = mesh, diverged

    def __call__(self, name: str, inputs: Inputs, models: list[Params], outputs: Outputs | None = None) -> None:
        """Record the models, with scores if a head is trained."""
        if not self.active:
            return
        tokens = float(np.mean(inputs.train.lengths))
        for number in self._diverged.living:
            chain, model, scores = self.chains[number], models[number], {}
            if self.has_head:
                outputs = outputs or make_outputs(inputs, self._mesh, model)
                params = without_projections(model)
                dev = inputs.dev["dev"]
                scores = dev.score(outputs(place(params, tree_shardings(self._mesh, params)), dev))
            bare = resize_vocabulary(without_projections(model), inputs.config.vocab_size)
            chain.append(link(name, inputs.config, bare, tokens, scores))
        if processes.is_primary():
            for number in self._diverged.living:
                member = f"member{number}: " if len(self.chains) > 1 else ""
                print(member + line(self.chains[number]), flush=True)


def run_stages(
    experiments: Sequence[Experiment],
    inputs: Inputs,
    models: list[Params],
    watch: Watch,
    taught: Taught,
    mesh: Mesh,
    out: Path,
    diverged: DivergedMembers,
) -> Trained:
    """Train the members through all stages. The methods of the first stage are already applied.

    Raises:
        InputError, Stopped, Diverged: as `train_stage`; InputError too if a method cannot be applied to the model.
    """
    experiment = experiments[0]
    outputs = make_outputs(inputs, mesh, models[0])
    for index, stage in enumerate(experiment.stages):
        if index and stage.compression:
            inputs, models = compressed(experiment, index, inputs, models, watch)
            check_segment(experiment, index, inputs, models)
            outputs = make_outputs(inputs, mesh, models[0])

        def score(params: Params, split: Split, outputs: Outputs = outputs) -> dict[str, float]:
            return split.score(outputs(params, split))

        run = Run(experiments, inputs, taught.params, taught.examples, score, mesh, out, diverged)
        models = train_stage(run, index, models)
        watch.has_head |= stage.objective.trains_head and "dev" in inputs.dev
        watch(f"{index + 1}-{stage.objective.name}", inputs, models, outputs)
    return Trained(inputs, models, outputs, watch.chains)


def check_segment(experiment: Experiment, index: int, inputs: Inputs, models: Sequence[Params]) -> None:
    """Check, by shapes alone, that the stages from this one up to the next methods can train the models.

    Raises:
        InputError: as `make_objective` and `check_params`.
    """
    later = range(index + 1, len(experiment.stages))
    end = next((i for i in later if experiment.stages[i].compression), len(experiment.stages))
    check_params([make_objective(experiment, i, inputs) for i in range(index, end)], models)


def make_outputs(inputs: Inputs, mesh: Mesh, like: Params) -> Outputs:
    """A function `(params, split) -> logits`, compiled once for parameters with the shapes of `like`.

    It raises Diverged if the logits are not finite.
    """
    model = HEADS[inputs.head].model(inputs.config, inputs.compute)
    step = make_predict_step(model, mesh, without_projections(like))

    def outputs(params: Params, split: Split) -> np.ndarray:
        logits = predict_logits(step, params, split.tokens, eval_batch_size(mesh), inputs.buckets)
        if not np.isfinite(logits).all():
            raise Diverged("the model's outputs are not finite")
        return logits

    return outputs
