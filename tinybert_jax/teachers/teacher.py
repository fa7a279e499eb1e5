"""A teacher that is a BERT directory."""

from __future__ import annotations

from typing import Any, NamedTuple

from tinybert_jax.batch import Params
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.files.directory import load_hf
from tinybert_jax.models.files.tokenizer import load_tokenizer
from tinybert_jax.models.fit import check_head, check_outputs, check_positions
from tinybert_jax.settings.experiment import Experiment
from tinybert_jax.settings.sources import CorpusSource
from tinybert_jax.settings.tasks import get_task


class Teacher(NamedTuple):
    """What is learnt from: fine-tuned on the task, or, for a corpus, as pretrained."""

    config: BertConfig
    params: Params  # on the host
    tokenizer: Any


def load_teacher(experiment: Experiment) -> Teacher:
    """The teacher of an experiment, checked to fit its task.

    Raises:
        InputError: it cannot be read, or does not fit the task.
    """
    name = str(experiment.teacher)
    config, params = load_hf(name)
    if isinstance(experiment.source, CorpusSource):
        check_positions(name, config, experiment.max_length)
    else:
        task = get_task(experiment.task)
        check_head(name, config, params, task.head, experiment.max_length)
        check_outputs(name, config, task)
    return Teacher(config, params, load_tokenizer(name, config))
