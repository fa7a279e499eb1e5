"""The command `tinybert compress`."""

from __future__ import annotations

from pathlib import Path

from tinybert_jax.cli.execute import write_page
from tinybert_jax.cli.options import MethodOptions, Source, TaskName
from tinybert_jax.errors import InputError
from tinybert_jax.reports.tables import print_table
from tinybert_jax.settings.compression import Vocabulary


def compress(
    model: str,
    task: TaskName,
    source: Source,
    out: Path,
    methods: MethodOptions,
    vocabulary: tuple[str, ...] = (),
    pack: bool = False,
    max_length: int | None = None,
    report: bool = True,
) -> None:
    """Make a fine-tuned model smaller without training, and print its size and scores before and after.

    Training rows measure which parameters matter; dev rows score. `tinybert distill --teacher MODEL --student OUT`
    trains the result further. `tinybert export` writes it as ONNX, without the pruned parts.

    Args:
        model: Hugging Face directory or hub id of a model that was fine-tuned on the task.
        task: the task.
        source: where the rows are.
        out: directory for the compressed model. It must be new or empty.
        methods: compression methods. docs/compression.md has the order in which they act.
        vocabulary: remove the pieces of the vocabulary that no text uses. "data" keeps the pieces of the training
            rows, "data FILE ..." also those of text files with a text a line. Special tokens and single characters
            are always kept. This is applied before --quantize.
        pack: store matrices with at least 30 % zeros without the zeros. Only this package can read the file. It also
            works without another method, for a model that is already sparse.
        max_length: tokens per row; longer rows are truncated. Default: the length that the model was trained with.
        report: write report.html and report.md beside the model, as `tinybert report` does. Both models are run on the
            dev rows again.
    """
    if vocabulary and vocabulary[0] != "data":
        raise InputError(f"--vocabulary {' '.join(vocabulary)}: give data, and after it files with a text a line")
    chosen = methods.settings(Vocabulary(vocabulary[1:]) if vocabulary else None)
    if not chosen and not pack:
        raise InputError("nothing to do: give --prune SHARE, --quantize int8 or --vocabulary data")
    from tinybert_jax.compression import compress as compressing
    from tinybert_jax.compression.links import notes, table

    chain = compressing.compress(model, task, source, chosen, out, max_length, pack)
    print_table(*table(chain))
    for note in notes(chain):
        print(note)
    print(f"written to {out}")
    if report:
        from tinybert_jax.reports.report import write_compressed

        write_page(lambda: write_compressed(out, model, task, source, max_length))
