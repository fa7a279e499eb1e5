"""An option that nothing reads is refused with its name."""

from __future__ import annotations

from pathlib import Path

import pytest
from in_process import assert_refused, distill_arguments, tinybert


@pytest.mark.parametrize(
    ("stage", "option", "named"),
    [
        ("transformer", "--prediction-steps", "--prediction-..."),
        ("prediction", "--transformer-epochs", "--transformer-..."),
        ("supervised", "--transformer-steps", "--transformer-..."),
        ("transformer", "--temperature", "--temperature"),
        ("supervised", "--temperature", "--temperature"),
        ("transformer", "--evaluate-every", "--evaluate-every"),
    ],
)
def test_options_that_no_stage_reads_are_refused(
    stage: str, option: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    arguments = distill_arguments(tmp_path / "teacher", tmp_path / "student", tmp_path / "data", tmp_path / "run")
    code = tinybert(monkeypatch, *arguments, "--stage", stage, option, 5)
    assert_refused(capsys, code, f"--stage {stage} does not read {named}: leave it out")


@pytest.mark.parametrize(
    ("stage", "more", "refused"),
    [
        ("prediction", [], False),
        ("prediction", ["--preset", "paper"], True),
        ("prediction", ["--start", "random"], True),
        ("prediction", ["--student", "some/directory"], True),
        ("supervised", [], True),
        ("supervised", ["--start", "copy"], False),
    ],
)
def test_a_layer_map_is_read_where_the_student_may_start_from_layers(
    stage: str, more: list[str], refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    arguments = distill_arguments(tmp_path / "teacher", Path("2x16"), tmp_path / "data", tmp_path / "run")
    code = tinybert(monkeypatch, *arguments, "--stage", stage, "--layer-map", "top", *more)
    unread = "layer_map is 'top', but no stage and no start reads it: leave it out"
    assert_refused(capsys, code, unread if refused else "teacher: no such directory")


@pytest.mark.parametrize(
    ("recipe", "option", "value", "message"),
    [
        (
            "transformer",
            "--masking-probability",
            0.1,
            "transformer does not read --masking-probability: leave it",
        ),
        ("masked_lm", "--layer-map", "top", "layer_map is 'top', but no stage and no start reads it: leave it out"),
    ],
)
def test_options_that_no_stage_on_text_reads_are_refused(
    recipe: str, option: str, value: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    arguments = ["pretrain", "--corpus", tmp_path / "text", "--student", tmp_path / "student", "--out", tmp_path / "o"]
    code = tinybert(monkeypatch, *arguments, "--recipe", recipe, option, value)
    assert_refused(capsys, code, message)
