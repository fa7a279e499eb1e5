"""The kinds of task: how rows become tokens, and how the outputs of a model are scored and written."""

from tinybert_jax.data.labels import discover_labels, label_ids, positive_class, written_labels
from tinybert_jax.settings.tasks import TASKS, Task, get_task
from tinybert_jax.tasks.classification import score

__all__ = ["TASKS", "Task", "discover_labels", "get_task", "label_ids", "positive_class", "score", "written_labels"]
