"""Layer maps: which teacher layer each student layer learns from."""

from __future__ import annotations

from typing import Literal

from tinybert_jax.errors import InputError

LayerMap = Literal["uniform", "top", "bottom"] | tuple[int, ...]


def teacher_layers(layer_map: LayerMap, student_depth: int, teacher_depth: int) -> tuple[int, ...]:
    """The layer map g(1), ..., g(M): which teacher layer, counted from 1, each student layer learns from.

    Args:
        layer_map: "uniform": g(m) = m N / M, rounded to the nearest layer where M does not divide N; "top": the last M
            layers; "bottom": the first M; or g itself. Where M > N, layers repeat.
        student_depth: M.
        teacher_depth: N.

    Raises:
        InputError: an explicit map has another length than M, or names a layer outside 1..N.

    >>> teacher_layers("uniform", 4, 12), teacher_layers("uniform", 4, 6)
    ((3, 6, 9, 12), (2, 3, 5, 6))
    >>> teacher_layers("top", 2, 6), teacher_layers("bottom", 2, 6)
    ((5, 6), (1, 2))
    """
    m_layers = range(1, student_depth + 1)
    match layer_map:
        case "uniform":
            # in integers, halves go up: the same on every machine
            return tuple(max(1, (2 * m * teacher_depth + student_depth) // (2 * student_depth)) for m in m_layers)
        case "top":
            return tuple(max(1, teacher_depth - student_depth + m) for m in m_layers)
        case "bottom":
            return tuple(min(m, teacher_depth) for m in m_layers)
        case str():
            raise InputError(f"unknown layer map {layer_map!r}; use uniform, top, bottom or a list of teacher layers")
    if len(layer_map) != student_depth:
        raise InputError(f"the layer map {layer_map} must name a layer for each of the student's {student_depth}")
    if not all(1 <= g <= teacher_depth for g in layer_map):
        raise InputError(f"the layer map {layer_map} must name teacher layers from 1 to {teacher_depth}")
    return tuple(layer_map)
