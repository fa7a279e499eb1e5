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

    check(config): refuses a model by its sizes, before anything is computed.
    apply(config, params, examples) -> config, params: what happens at once, before a stage. Parameters are numpy
    arrays.
    wrap(objective, config, examples) -> objective: what is trained. Masks and gates act in its `init`, `loss` and
    `export`; what is carried and not trained is the entry "carried" of its trainable tree.
    finish(config, params) -> config, params: what happens to the trained model before a later stage's methods, and
    before it is written; None: nothing.
    retokenize(config, params, tokenizer, examples) -> config, params, tokenizer: what changes the tokenizer too, after
    which rows are tokenised again; None: it stays. Only `compress` can do that.
    note(config, params) -> str: what to say of the result beside its scores and size; "" is nothing.
    """

    check: Callable[[BertConfig], None] = lambda config: None
    apply: Callable[[BertConfig, Params, Examples], tuple[BertConfig, Params]] = _unchanged
    wrap: Callable[[Objective, BertConfig, Examples], Objective] = lambda objective, config, examples: objective
    finish: Callable[[BertConfig, Params], tuple[BertConfig, Params]] | None = None
    retokenize: Callable[[BertConfig, Params, Any, Examples], tuple[BertConfig, Params, Any]] | None = None
    note: Callable[[BertConfig, Params], str] = lambda config, params: ""
