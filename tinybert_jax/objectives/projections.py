"""Projections of a student's hidden states to the teacher's width. They are trained, but are not part of the student.

Source: TinyBERT, arXiv 1909.10351, equations 8 and 9; `fit_dense` and `fit_denses` are the authors' names.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from tinybert_jax.batch import Params
from tinybert_jax.errors import InputError
from tinybert_jax.models.config import BertConfig
from tinybert_jax.precision import product
from tinybert_jax.settings.arithmetic import Arithmetic

PROJECTIONS = ("fit_dense", "fit_denses", "projections")  # entries of a parameter tree that are not the student


def init_projections(
    key: PRNGKeyArray, student: BertConfig, teacher: BertConfig, facts: Arithmetic, student_params: Params
) -> Params:
    """The projections in the student's parameters, or new ones.

    New projections are a kernel for embeddings and one for hidden states ("separate"), or one shared layer with bias,
    `fit_dense`. A checkpoint may also have `fit_denses`, one layer per state, stacked. New kernels are random, or the
    identity if the widths are equal and the preset starts from the teacher.

    Raises:
        InputError: the projections in the student's parameters do not have the teacher's width.
    """
    shape = (student.hidden_size, teacher.hidden_size)
    for name in PROJECTIONS:
        if name in student_params:
            brought = student_params[name] if name == "projections" else {name: student_params[name]}
            for projection in brought.values():
                if projection["kernel"].shape[-2:] != shape:
                    raise InputError(
                        f"the student's {name} leads from width {projection['kernel'].shape[-2]} to"
                        f" {projection['kernel'].shape[-1]}, but the teacher is {shape[1]} wide: take the teacher that"
                        f" it was trained for, or a student without {name}"
                    )
            return brought

    def kernel(key: PRNGKeyArray) -> Array:
        if facts.start_from_teacher and shape[0] == shape[1]:
            return jnp.eye(shape[0])  # a random projection would lead a student away that starts close to its teacher
        return student.initializer_range * jax.random.normal(key, shape)

    if facts.projections == "shared":
        return {"fit_dense": {"kernel": kernel(key), "bias": jnp.zeros(teacher.hidden_size)}}
    embedding_key, hidden_key = jax.random.split(key)
    return {"embedding": {"kernel": kernel(embedding_key)}, "hidden": {"kernel": kernel(hidden_key)}}


def last_projection(projections: Params) -> Params:
    """The dense layer, with kernel and bias, that projects the last hidden state."""
    if "fit_denses" in projections:
        return {name: leaf[-1] for name, leaf in projections["fit_denses"].items()}
    if "fit_dense" in projections:
        return dict(projections["fit_dense"])
    kernel = projections["hidden"]["kernel"]
    return {"kernel": kernel, "bias": jnp.zeros(kernel.shape[-1:])}


def project(projections: Params, states: Float[Array, "s b q d"]) -> tuple[Array, Array]:
    """Project states to the teacher's width: embedding output [b, q, e] and hidden states [l, b, q, e]."""
    if "fit_denses" in projections:  # one per state
        projected = jax.vmap(_dense)(projections["fit_denses"], states)
        return projected[0], projected[1:]
    if "fit_dense" in projections:  # one for all
        return _dense(projections["fit_dense"], states[0]), _dense(projections["fit_dense"], states[1:])
    return _product(states[0], projections["embedding"]), _product(states[1:], projections["hidden"])


def _dense(params: Params, states: Float[Array, "..."]) -> Array:
    return _product(states, params) + params["bias"].reshape((1,) * (states.ndim - 1) + (-1,))


def _product(states: Float[Array, "..."], params: Params) -> Array:
    return product("...d,de->...e", states, jnp.asarray(params["kernel"], states.dtype))


def without_projections(student_params: Params) -> Params:
    """The student's parameters without projections."""
    return {name: value for name, value in student_params.items() if name not in PROJECTIONS}
