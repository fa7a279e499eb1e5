"""The table of starts of a student: random, a copy of the teacher's layers, or a projection of the teacher."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from tinybert_jax.batch import Batch, Params
from tinybert_jax.errors import InputError
from tinybert_jax.models.config import EMBEDDING_DENSE, BertConfig
from tinybert_jax.models.heads import HEADS
from tinybert_jax.models.parameters import unfactored, unshared
from tinybert_jax.settings.arithmetic import PRESETS
from tinybert_jax.settings.choices import NamedStart, Preset, Start, student_shape
from tinybert_jax.settings.objectives import LayerMap, teacher_layers
from tinybert_jax.students.presets import student_config
from tinybert_jax.students.spectral import check_narrower, needed_tokens, spectral_start


def auto_start(
    student: BertConfig, teacher: BertConfig, preset: Preset, distils: bool, tokens: int
) -> tuple[NamedStart, str]:
    """The start that "auto" means for a student without parameters, and why.

    Args:
        student: the config of the student.
        teacher: the config of the teacher.
        preset: the run's preset. `paper` and `official` start at random, like the paper and the authors' code.
        distils: whether a stage learns from the teacher. If none does, as in a baseline, the start is random.
        tokens: the number of tokens of the training text.
    """
    if not PRESETS[preset].start_from_teacher:
        return "random", f"as preset {preset} says"
    if not distils:
        return "random", "no stage learns from the teacher"
    try:
        check_start("copy", student, teacher)
        return "copy", "the teacher's layers are of the student's widths"
    except InputError:
        pass
    try:
        check_start("spectral", student, teacher)
    except InputError as error:
        return "random", str(error)
    if tokens < needed_tokens(student):
        return "random", f"start 'spectral' needs {needed_tokens(student)} tokens of text, and there are {tokens}"
    return "spectral", "the teacher projected on the principal directions of its hidden states"


def from_teacher(
    start: NamedStart,
    student: BertConfig,
    teacher: BertConfig,
    teacher_params: Params,
    layer_map: LayerMap,
    batches: Iterable[Batch],
) -> Params:
    """The parameters that a start takes from the teacher.

    They are `{"encoder"}`, empty for "random"; also "projections" for "spectral", "cls" for "copy" from a masked LM,
    and the dense layer behind an embedding model's pooling. A teacher's low-rank factors are multiplied. For a student
    without token types, the teacher's embedding of type 0 is added to the positions.

    Args:
        start: a row of `STARTS`.
        student: the config of the student.
        teacher: the config of the teacher.
        teacher_params: the teacher's parameters, with at least "encoder".
        layer_map: as in `teacher_layers`.
        batches: batches of the training text. Only the spectral start reads them, and only as many as it needs.

    Raises:
        InputError: this start is not possible for this student and teacher.
    """
    take = STARTS[start].take
    if take is None:
        return {"encoder": {}}
    params = take(student, *unfactored(teacher, teacher_params), layer_map, batches)
    return params if student.type_vocab_size else _without_token_types(params)


def start_params(random_params: Params, from_teacher: Params) -> Params:
    """A student's initial parameters. Task heads, and all others that the teacher does not give, stay random."""
    bert = {name: value for name, value in from_teacher["encoder"].items() if name in random_params["encoder"]}
    other_heads = {row.key for row in HEADS.values()} - random_params.keys()
    brought = {name: value for name, value in from_teacher.items() if name not in other_heads}
    return random_params | brought | {"encoder": random_params["encoder"] | bert}


def copies(start: Start, student: str, teacher: BertConfig | None) -> bool:
    """Whether a student starts as layers of its teacher: by "copy", or by "auto" if it has the teacher's sizes.

    Args:
        start: the start in the settings.
        student: a preset or size, or a directory, which starts from its own parameters.
        teacher: the config of the teacher whose layers teach; None if there is none.
    """
    if start != "auto" or teacher is None or student_shape(student) is None:
        return start == "copy"
    with contextlib.suppress(InputError):
        check_start("copy", student_config(student, teacher), teacher)
        return True
    return False


def check_start(start: Start, student: BertConfig, teacher: BertConfig) -> None:
    """Refuse a start that is not possible for a student and a teacher of these sizes.

    Raises:
        InputError: "copy" needs equal widths and heads; "spectral" needs equal heads and a narrower student.
    """
    if start != "auto":
        STARTS[start].check(student, teacher)


def _check_equal(student: BertConfig, teacher: BertConfig) -> None:
    for name in ("hidden_size", "embedding_width", "num_attention_heads", "attention_head_dim", "intermediate_size"):
        student_size, teacher_size = getattr(student, name), getattr(teacher, name)
        if student_size != teacher_size:
            sizes = f"the student has {student_size}, the teacher {teacher_size}"
            raise InputError(f"start 'copy' needs equal {name}: {sizes}")


def copy_layers(student: BertConfig, teacher: BertConfig, teacher_params: Params, layer_map: LayerMap) -> Params:
    """`{"encoder"}` in which student layer m is a copy of teacher layer g(m). Embeddings and pooler are copied too, as
    are the masked-LM head and the dense layer behind a pooling, if the teacher has them.

    Raises:
        InputError: student and teacher do not have the same widths and heads, or the layer map does not fit.
    """
    _check_equal(student, teacher)
    mapped = teacher_layers(layer_map, student.num_hidden_layers, teacher.num_hidden_layers)
    bert = unshared(teacher, teacher_params)[1]["encoder"]
    first = np.array(mapped)[:: student.num_hidden_layers // student.layer_groups]  # the first layer of each group
    layers = jax.tree.map(lambda leaf: jnp.asarray(leaf)[first - 1], bert["encoder"]["layer"])
    masked_lm = {"cls": {"predictions": teacher_params["cls"]["predictions"]}} if "cls" in teacher_params else {}
    heads = masked_lm | {name: teacher_params[name] for name in (EMBEDDING_DENSE,) if name in teacher_params}
    return {"encoder": bert | {"encoder": bert["encoder"] | {"layer": layers}}} | heads


def _copied(
    student: BertConfig, teacher: BertConfig, teacher_params: Params, layer_map: LayerMap, _: Iterable[Batch]
) -> Params:
    return copy_layers(student, teacher, teacher_params, layer_map)


def _spectral(
    student: BertConfig, teacher: BertConfig, teacher_params: Params, layer_map: LayerMap, batches: Iterable[Batch]
) -> Params:
    params = spectral_start(student, teacher, teacher_params, batches, layer_map)
    params[EMBEDDING_DENSE] = _projected(params["projections"]["hidden"]["kernel"], teacher_params)
    return params


def _projected(kernel: Array | np.ndarray, teacher_params: Params) -> Params:
    """The dense layer that projects the student's states to the teacher's states, then to the teacher's vectors."""
    dense = teacher_params.get(EMBEDDING_DENSE)
    if dense is None:
        return {"kernel": kernel, "bias": np.zeros(kernel.shape[-1], np.float32)}
    return {"kernel": np.asarray(kernel) @ np.asarray(dense["kernel"]), "bias": dense["bias"]}


def _without_token_types(params: Params) -> Params:
    """Parameters with the embedding of token type 0 added to the positions, so a single text keeps its embedding."""
    embeddings = dict(params["encoder"]["embeddings"])
    if "token_type_embeddings" in embeddings:
        first_type = jnp.asarray(embeddings.pop("token_type_embeddings")["embedding"])[:1]
        positions = jnp.asarray(embeddings["position_embeddings"]["embedding"]) + first_type
        embeddings["position_embeddings"] = {"embedding": positions}
    return params | {"encoder": params["encoder"] | {"embeddings": embeddings}}


class StartMethod(NamedTuple):
    """A row of the table of starts."""

    check: Callable[[BertConfig, BertConfig], None]  # raises InputError if student and teacher do not fit
    # student config, teacher config, teacher parameters, layer map, batches -> parameters; None: it takes nothing
    take: Callable[[BertConfig, BertConfig, Params, LayerMap, Iterable[Batch]], Params] | None


STARTS: dict[NamedStart, StartMethod] = {
    "random": StartMethod(lambda student, teacher: None, None),
    "copy": StartMethod(_check_equal, _copied),
    "spectral": StartMethod(check_narrower, _spectral),
}
