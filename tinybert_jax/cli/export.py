"""The command `tinybert export`."""

from __future__ import annotations

from pathlib import Path

from tinybert_jax.errors import InputError, note
from tinybert_jax.reports.tables import print_table
from tinybert_jax.settings.choices import ExportFormat


def export(
    model: str,
    out: Path,
    to: tuple[ExportFormat, ...] = ("onnx",),
    weight_bits: int = 7,
    texts: Path | None = None,
) -> None:
    """Write a model as ONNX, as ONNX in int8, or as StableHLO, then run the files and compare their outputs with it.

    The directory has the layout of optimum, sentence-transformers and transformers.js. To serve it, you need only ONNX
    Runtime and the tokenizers package. `tinybert evaluate --model OUT` scores it.

    Args:
        model: Hugging Face directory or hub id of a model, with any head or none.
        out: directory for the files. It must be new or empty.
        to: one or more formats. onnx: float32; onnx-int8: dense layers and the word table in 8 bits, about a quarter
            of the bytes; stablehlo: a JAX program for CPU, CUDA and TPU, with its parameters beside it;
            stablehlo-int8: the same in 8 bits.
        weight_bits: bits of the weights in onnx-int8. 7 is correct on every processor. 8 is a little more exact, but
            needs a processor with VNNI or AMX, or an ARM: on others, the sums of 8-bit products overflow.
        texts: a file with a text a line, on which the outputs are compared. Default: random words.
    """
    lines = None
    if texts is not None:
        from tinybert_jax.data.reader import read_text
        from tinybert_jax.data.suspects import refuse_json

        content = read_text(texts)
        refuse_json(texts, content, "a text a line")
        lines = [line for line in content.split("\n") if line.strip()]
        if not lines:
            raise InputError(f"{texts}: holds no text: give a file with a text a line")
    from tinybert_jax.export.export import export_model, table

    print_table(*table(export_model(model, out, to, weight_bits, lines)))
    if lines is None:
        note(
            "the outputs were compared on random words: --texts FILE compares them on yours, tinybert evaluate scores"
        )
