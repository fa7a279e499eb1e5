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
    """Make a fine-tuned model smaller at once, without training, and print what was lost and won.

    Training rows measure what is important, and the dev rows score. `tinybert distill --teacher MODEL --student OUT`
    trains the result further, and `tinybert export` writes it as ONNX, without what was pruned.

    Args:
        model: a Hugging Face directory or hub id, fine-tuned on the task.
        task: a row of the task table.
        source: where the rows are.
        out: the directory of the compressed model; new, or empty.
        methods: what is done, in the order of these options; each works on what is left by those before it.
        vocabulary: keep the pieces of the vocabulary that the training rows use (data), or also those of the lines of
            text files (data FILE ...), all special tokens, and all single characters. It comes before --quantize.
        pack: write matrices with at least 30 % zeros without them. Only this package reads the file. It is also for a
            model that is sparse already, with no other method.
        max_length: tokens per row; default: the length that the model was trained with.
        report: write report.html and report.md beside the model, as `tinybert report` does, which runs both models on
            the dev rows again.
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
