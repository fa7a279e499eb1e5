"""The command `tinybert compress`."""

from __future__ import annotations

from pathlib import Path

from tinybert_jax.cli.options import Source, TaskName, methods_of
from tinybert_jax.errors import InputError
from tinybert_jax.reports.tables import print_table
from tinybert_jax.settings.compression import CompressionSettings, Criterion, Vocabulary


def compress(
    model: str,
    task: TaskName,
    source: Source,
    out: Path,
    prune: float | None = None,
    uniform: bool = False,
    share: int | None = None,
    sparse: float | None = None,
    pattern: str | None = None,
    criterion: Criterion | None = None,
    vocabulary: tuple[str, ...] = (),
    pack: bool = False,
    max_length: int | None = None,
) -> None:
    """Make a fine-tuned model smaller at once, without training, and print what was lost and won.

    Training rows measure what is important, and the dev rows score. `tinybert distill --teacher MODEL --student OUT`
    trains the result further, and `tinybert export` writes it as ONNX, without what was pruned.

    Args:
        model: a Hugging Face directory or hub id, fine-tuned on the task.
        task: a row of the task table.
        source: where the rows are.
        out: the directory of the compressed model; new, or empty.
        prune: remove whole attention heads and feed-forward units; the number is the share of the encoder's
            multiply-adds that is left. Half costs about a minute for 20 million parameters on 2 cores.
        uniform: prune as many heads and units in every layer. The model is less exact, and JAX, too, runs it faster;
            without this, only ONNX is faster by all that was removed.
        share: let consecutive layers share their parameters, in so many groups, as an ALBERT. The model is smaller,
            not faster, and useless until it is trained: `tinybert distill --share` does both.
        sparse: make single weights of the dense layers zero; the number is their share of each matrix. The model is
            smaller when it is packed, not faster.
        pattern: make zero all but N of each M consecutive inputs, given as N:M, for example 2:4; --sparse stays 0.5.
        criterion: sparsegpt: what costs the outputs least becomes zero, and the rest makes up for it; wanda: weight
            times input; magnitude: the weight alone. Default: sparsegpt.
        vocabulary: keep the pieces of the vocabulary that the training rows use (data), or also those of the lines of
            text files (data FILE ...), all special tokens, and all single characters. It comes last.
        pack: write matrices with at least 30 % zeros without them. Only this package reads the file. It is also for a
            model that is sparse already, with no other method.
        max_length: tokens per row; default: the length that the model was trained with.
    """
    methods: list[CompressionSettings] = [*methods_of(prune, uniform, share, sparse, pattern, criterion)]
    if vocabulary:
        if vocabulary[0] != "data":
            raise InputError(f"--vocabulary {' '.join(vocabulary)}: give data, and after it files with a text a line")
        methods.append(Vocabulary(vocabulary[1:]))
    if not methods and not pack:
        raise InputError(
            "nothing to do: give --prune SHARE, for example --prune 0.5, --sparse 0.5 or --vocabulary data"
        )
    from tinybert_jax.compression import compress as compressing

    chain = compressing.compress(model, task, source, methods, out, max_length, pack)
    print_table(*compressing.table(chain))
    for note in compressing.notes(chain):
        print(note)
    print(f"written to {out}")
