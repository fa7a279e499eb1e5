"""The form of a compression method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tinybert_jax.batch import Examples, Params
from tinybert_jax.models.config import BertConfig
from tinybert_jax.objectives.objective import Objective


def _unchanged(config: BertConfig, params: Params, examples: Examples) -> tuple[BertConfig, Params]:
    return config, params


class Method(NamedTuple):
    """A compression method.

    check(config): refuses a model by its config, before anything is computed.
    apply(config, params, examples) -> config, params: changes the model before a stage. Parameters are numpy arrays.
    wrap(objective, config, examples) -> objective: changes what is trained. Masks and gates act in `init`, `loss` and
    `export` of the new objective; their state is in the entry "carried" of the trainable tree.
    finish(config, params) -> config, params: changes the trained model before a later stage's methods, and before the
    model is saved; None: no change.
    retokenize(config, params, tokenizer, examples) -> config, params, tokenizer: changes the tokenizer too; then rows
    are tokenised again. None: no change. Only `compress` supports this.
    note(config, params) -> str: a note about the result beside its scores and size; "" for none.
    """

    check: Callable[[BertConfig], None] = lambda config: None
    apply: Callable[[BertConfig, Params, Examples], tuple[BertConfig, Params]] = _unchanged
    wrap: Callable[[Objective, BertConfig, Examples], Objective] = lambda objective, config, examples: objective
    finish: Callable[[BertConfig, Params], tuple[BertConfig, Params]] | None = None
    retokenize: Callable[[BertConfig, Params, Any, Examples], tuple[BertConfig, Params, Any]] | None = None
    note: Callable[[BertConfig, Params], str] = lambda config, params: ""
