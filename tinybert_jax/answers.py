"""The teacher's logits, computed once for every row, or augmented variant, that a stage reads more than once."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from tinybert_jax.config import Batch, Params
from tinybert_jax.data import Examples, TwoVocabularies
from tinybert_jax.predict import predict_logits
from tinybert_jax.rows import cached_arrays


@dataclass(frozen=True, eq=False)
class Answered:
    """n rows with the teacher's logits of each: the step that trains on them runs no teacher."""

    examples: Examples
    logits: np.ndarray  # float32 [n, c]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per row, int [n]."""
        return self.examples.lengths

    @property
    def fingerprint(self) -> str:
        """Of the rows."""
        return self.examples.fingerprint

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, rows: np.ndarray, length: int, epoch: int) -> Batch:
        """The rows' batch, with `teacher_logits` [b, c] in the place of the teacher's own tokens."""
        logits = np.where(rows[:, None] >= 0, self.logits[rows], 0)
        return self.examples.batch(rows, length, epoch)._replace(teacher_inputs=None, teacher_logits=logits)


def answered(
    examples: Examples,
    step: Any,
    params: Params,
    teacher: str,
    mesh: Mesh,
    batch_size: int,
    buckets: tuple[int, ...],
    cache_dir: Path | None = None,
) -> Answered:
    """The rows with the teacher's logits, read from the cache where an equal run on equal devices has left them there.

    Args:
        examples: n rows whose batches are the same in every epoch.
        step: of the teacher, from `train_step.make_predict_step`.
        params: the teacher's, on the mesh.
        teacher: fingerprint of the teacher's files and of how it computes.
        mesh: of `step`.
        batch_size: rows that are computed at once.
        buckets: lengths that batches are padded to.
        cache_dir: as in `rows.read_rows`; 4 bytes a logit are kept there. Several processes compute, and keep nothing.

    Raises:
        InputError: the cache cannot be written.
    """
    own = examples.teacher if isinstance(examples, TwoVocabularies) else examples

    def compute() -> dict[str, np.ndarray]:
        return {"logits": predict_logits(step, params, own, batch_size, buckets, "teacher's answers")}

    if jax.process_count() > 1:  # one that finds them in its cache would leave the others waiting
        return Answered(examples, compute()["logits"])
    device = mesh.devices.flat[0].device_kind
    form = [teacher, own.fingerprint, device, dict(mesh.shape), batch_size, buckets, jax.__version__]
    fingerprint = hashlib.sha256(json.dumps(form).encode()).hexdigest()
    return Answered(examples, cached_arrays(cache_dir, "answers", fingerprint, compute)["logits"])
