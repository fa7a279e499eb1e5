"""The command `tinybert students`."""

from __future__ import annotations

import dataclasses

from tinybert_jax.errors import InputError
from tinybert_jax.reports.tables import print_table
from tinybert_jax.settings.choices import MIN_LENGTH, STUDENTS

SIZES = ("2x128", "6x192", "4x256", "3x384", "6x384", "12x384", "4x512", *STUDENTS)  # shown by default
BERT_BASE = "BERT_BASE"


def students(
    student: tuple[str, ...] = (),
    teacher: str | None = None,
    vocabulary_size: int | None = None,
    max_length: int = 128,
    measure: bool = False,
) -> None:
    """List the parameters, megabytes and multiply-adds of students before training, also as shares of the teacher's.

    Use it to choose the --student of `tinybert distill`. For example:

    tinybert students --teacher runs/teacher/student --student 3x192 6x256 --measure

    Args:
        student: presets or sizes, as in `tinybert distill`. Default: the presets and a range of sizes.
        teacher: Hugging Face directory or hub id. The students take its vocabulary and its proportions. Default:
            BERT_BASE.
        vocabulary_size: number of pieces in the students' vocabulary, for example after `tinybert compress
            --vocabulary`. Default: the teacher's.
        max_length: tokens per text, for multiply-adds and times.
        measure: also time each model on this machine, with random parameters: one text, and per text in a batch of 32.
            This takes some seconds per model.
    """
    if vocabulary_size is not None and vocabulary_size < 1:
        raise InputError(f"--vocabulary-size {vocabulary_size}: give a number of at least 1")
    if max_length < MIN_LENGTH:
        raise InputError(f"--max-length {max_length}: give a number of at least {MIN_LENGTH}")
    import jax

    from tinybert_jax.models.config import BertConfig
    from tinybert_jax.models.files.directory import load_config, resolve
    from tinybert_jax.models.fit import check_positions
    from tinybert_jax.reports.students import size, table
    from tinybert_jax.students.presets import student_config

    name = teacher or BERT_BASE
    whole = BertConfig() if teacher is None else load_config(resolve(teacher))
    check_positions(name, whole, max_length)
    models = []
    for asked in student or SIZES:
        try:
            config = student_config(asked, whole)
        except InputError:
            if student:
                raise
            continue  # the teacher's heads do not fit into this width
        if vocabulary_size is not None:
            config = dataclasses.replace(config, vocab_size=vocabulary_size)
        models.append(size(asked, config, max_length))
    models.sort(key=lambda model: model.macs)
    print_table(*table(models, size(name, whole, max_length), max_length, measure))
    print(f"multiply-adds: of a text of {max_length} tokens; size and compute: shares of {name}'s")
    if measure:
        devices = jax.devices()
        print(f"ms: measured now, on {len(devices)} x {devices[0].device_kind}, float32, {max_length} tokens")
