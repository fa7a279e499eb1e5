"""A model's size and scores after each compression method and stage: a chain of links, and its table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tinybert_jax.batch import Params
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.parameters import count_parameters, encoder_macs
from tinybert_jax.tasks.metrics import share_of


class Link(NamedTuple):
    """The model after a method or stage. The first link of a chain is the whole model."""

    name: str  # of the method or stage
    scores: dict[str, float]  # on the dev set
    parameters: int
    macs: float  # multiply-adds of the encoder on a training row of mean length, without zeros
    note: str = ""  # about the method's result


def table(chain: Sequence[Link]) -> tuple[list[str], list[list[str]]]:
    """The chain as a table, for the command and the model card. Shares are relative to the whole model."""
    names = list(next((link.scores for link in chain if link.scores), {}))
    header = ["after", *names, *(["kept"] if names else []), "parameters", "encoder's multiply-adds"]
    return header, [_cells(chain[0], link, names) for link in chain]


def _cells(whole: Link, link: Link, names: Sequence[str]) -> list[str]:
    scores = [f"{link.scores[name]:.4f}" if link.scores else "-" for name in names]
    if names:
        first = names[0]
        scores.append(share_of(link.scores.get(first), whole.scores.get(first)))
    return [link.name, *scores, f"{link.parameters / 1e6:.1f} M", f"{link.macs / whole.macs:.1%}"]


def line(chain: Sequence[Link]) -> str:
    """One line about the last link of a chain."""
    (after, *names), cells = table(chain)[0], table(chain)[1][-1]
    told = ", ".join(f"{name} {cell}" for name, cell in zip(names, cells[1:], strict=True) if cell != "-")
    return f"{after} {cells[0]}: {told}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))


def notes(chain: Sequence[Link]) -> list[str]:
    """The notes of the methods, one line each."""
    return [f"{link.name}: {link.note}" for link in chain if link.note]


def link(name: str, config: BertConfig, params: Params, tokens: float, scores: dict[str, float]) -> Link:
    """The link of a model. `tokens` is the mean number of tokens of a training row."""
    return Link(name, scores, count_parameters(params), encoder_macs(config, params, tokens))
