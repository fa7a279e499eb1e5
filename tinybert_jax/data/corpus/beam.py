"""The shards of `corpus.build`, byte for byte, from an Apache Beam pipeline: for text that one machine is slow for.

    python -m tinybert_jax.corpus_beam --files gs://BUCKET/text/part.txt --tokenizer DIR --out gs://BUCKET/corpus \\
        [--runner DataflowRunner and whatever else Beam takes]

Needs the extra `beam`. Copy the directory to where it is trained from; `tinybert pretrain --corpus DIR` opens it.
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
        source: text files, in any file system that Beam knows; `processes` is the runner's business and not read.
        tokenizer: the Hugging Face directory of the model that is to be trained.
        out: directory of the shards, in any file system that Beam knows.
        max_length: tokens a sequence, special ones included.
        seed: of pairs and short lengths.
        pipeline_args: Beam's own, such as `--runner`.

    Raises:
        InputError: as `corpus.build`; `out` holds a corpus. What is wrong with a text is found by a worker, and comes
            in the error of the runner.
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
            | beam.Reshuffle()  # reading is quick and in order; the rest goes to all workers
            | "tokenize" >> beam.Map(functools.partial(_write, recipe=recipe, out=out))
            | beam.combiners.ToList()
            | "finish" >> beam.Map(functools.partial(_finish, recipe=recipe, out=out))
        )


def _numbered_units(source: CorpusSource) -> Iterator[tuple[int, bytes]]:
    from apache_beam.io.filesystems import FileSystems

    # it decompresses what ends on .gz
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
    """A file in `out`; a bundle that is retried writes the same content again."""
    from apache_beam.io.filesystems import FileSystems

    with FileSystems.create(FileSystems.join(out, name)) as file:
        file.write(content)


@dataclass(frozen=True)
class Command:
    """Build the shards of text files with Apache Beam; options that are not known here go to Beam."""

    source: Annotated[CorpusSource, tyro.conf.OmitArgPrefixes]
    tokenizer: str  # Hugging Face directory of the model that is to be trained
    out: str  # directory of the shards
    max_length: int = 128  # tokens a sequence
    seed: int = 0  # of pairs and short lengths


def main() -> None:
    """Entry point. Exit code 2 and one line where the input is wrong."""
    try:
        command, pipeline_args = tyro.cli(Command, return_unknown_args=True)
        run(command.source, command.tokenizer, command.out, command.max_length, command.seed, pipeline_args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
