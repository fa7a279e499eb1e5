"""Build the shards of `corpus.build`, byte for byte, with Apache Beam: for text that needs more than one machine.

    python -m tinybert_jax.data.corpus.beam --files gs://BUCKET/text.txt --tokenizer DIR --out gs://BUCKET/corpus \\
        [--runner DataflowRunner and other options of Beam]

It needs the extra `beam`. Copy the directory to the training machine; `tinybert pretrain --corpus DIR` opens it.
"""

from __future__ import annotations

import functools
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tinybert_jax.data.corpus.sequences import Recipe, make_recipe
from tinybert_jax.data.corpus.shards import MANIFEST, Shard, manifest, shard_files, write_shard
from tinybert_jax.data.corpus.text import units
from tinybert_jax.errors import InputError
from tinybert_jax.settings.sources import CorpusSource


def run(
    source: CorpusSource,
    tokenizer: str,
    out: str,
    max_length: int = 128,
    seed: int = 0,
    pipeline_args: Sequence[str] = (),
) -> None:
    """Build the shards of text files with Beam.

    Args:
        source: text files, in any file system that Beam knows; `processes` is not used.
        tokenizer: the Hugging Face directory of the model that is to be trained.
        out: the directory of the shards, in any file system that Beam knows.
        max_length: tokens per sequence, special tokens included.
        seed: the seed of pairs and short lengths.
        pipeline_args: options of Beam, such as `--runner`.

    Raises:
        InputError: as in `corpus.build`, or `out` holds a corpus. An error in the text is found by a worker, and is
            part of the runner's error.
    """
    import apache_beam as beam
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.options.pipeline_options import PipelineOptions

    from tinybert_jax.models.files.directory import load_config
    from tinybert_jax.models.files.tokenizer import load_tokenizer

    recipe = make_recipe(source, load_tokenizer(tokenizer, load_config(tokenizer)), max_length, seed)
    for path in source.files:
        if not FileSystems.exists(path):
            raise InputError(f"{path}: no such file: give text files with --files")
    if FileSystems.exists(FileSystems.join(out, MANIFEST)):
        raise InputError(f"{out}: holds a corpus: give another directory")
    if not FileSystems.exists(out):
        FileSystems.mkdirs(out)
    with beam.Pipeline(options=PipelineOptions([*pipeline_args])) as pipeline:
        (
            pipeline
            | beam.Create([source])
            | "read" >> beam.FlatMap(_numbered_units)
            | beam.Reshuffle()  # reading is fast and sequential; tokenizing is spread over all workers
            | "tokenize" >> beam.Map(functools.partial(_write, recipe=recipe, out=out))
            | beam.combiners.ToList()
            | "finish" >> beam.Map(functools.partial(_finish, recipe=recipe, out=out))
        )


def _numbered_units(source: CorpusSource) -> Iterator[tuple[int, bytes]]:
    from apache_beam.io.filesystems import FileSystems

    # `open` decompresses files that end in .gz
    yield from enumerate(units(source.files, source.one_document_per_line, FileSystems.open))


def _write(unit: tuple[int, bytes], recipe: Recipe, out: str) -> Shard:
    with tempfile.TemporaryDirectory() as temporary:
        shard = write_shard(Path(temporary), *unit, recipe)
        for file in shard_files(Path(temporary), shard.name):
            _create(out, file.name, file.read_bytes())
    return shard


def _finish(shards: list[Shard], recipe: Recipe, out: str) -> None:
    _create(out, MANIFEST, manifest(recipe, shards).encode())


def _create(out: str, name: str, content: bytes) -> None:
    """Write a file in `out`. A bundle that is retried writes the same content again."""
    from apache_beam.io.filesystems import FileSystems

    with FileSystems.create(FileSystems.join(out, name)) as file:
        file.write(content)


@dataclass(frozen=True)
class Command:
    """Build the shards of text files with Apache Beam. Options that are unknown here go to Beam."""

    source: Annotated[CorpusSource, tyro.conf.OmitArgPrefixes]
    tokenizer: str  # Hugging Face directory of the model that is to be trained
    out: str  # directory of the shards
    max_length: int = 128  # tokens per sequence
    seed: int = 0  # seed of pairs and short lengths


def main() -> None:
    """Entry point. Wrong input ends with one line and exit code 2."""
    try:
        command, pipeline_args = tyro.cli(Command, return_unknown_args=True)
        run(command.source, command.tokenizer, command.out, command.max_length, command.seed, pipeline_args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
