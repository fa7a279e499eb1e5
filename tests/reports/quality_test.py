"""What the page says of each model."""

from __future__ import annotations

from tinybert_jax.reports.models import STUDENT, TEACHER, Model
from tinybert_jax.reports.quality import summary


def test_each_student_is_held_against_its_own_teacher() -> None:
    models = [
        Model(name, name, role, {"accuracy": score})
        for name, role, score in (
            ("first", TEACHER, 0.8),
            ("second", TEACHER, 0.5),
            ("small", STUDENT, 0.4),
            ("tiny", STUDENT, 0.4),
        )
    ]
    (items,) = summary(models, "accuracy", {"small": models[0], "tiny": models[1]})
    assert items.items == (
        f"first ({TEACHER}): accuracy 0.8000 on the dev set.",
        f"second ({TEACHER}): accuracy 0.5000 on the dev set.",
        f"small ({STUDENT}): accuracy 0.4000 on the dev set; 50.0% of the teacher's accuracy.",
        f"tiny ({STUDENT}): accuracy 0.4000 on the dev set; 80.0% of the teacher's accuracy.",
    )
