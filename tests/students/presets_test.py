"""Students of any size: what a size leaves open comes from the teacher, and every start and population takes one."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from conftest import run_here

import tinybert_jax as tb
from tinybert_jax.settings.choices import student_shape
from tinybert_jax.students.presets import student_config

MINILM = tb.BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)


@pytest.mark.parametrize(
    ("size", "teacher", "shape"),
    [
        ("6x384", MINILM, (6, 384, 1536, 12)),
        ("3x192", MINILM, (3, 192, 768, 12)),
        ("3x192x500", MINILM, (3, 192, 500, 12)),
        ("3x192x500x6", MINILM, (3, 192, 500, 6)),
        ("12x768", MINILM, (12, 768, 3072, 12)),
        ("2x385", MINILM, (2, 385, 1540, 11)),  # heads of 35, where the teacher's are 32 wide and 7 would be 55
        ("2x400", MINILM, (2, 400, 1600, 10)),
        ("4x312", tb.BertConfig(hidden_size=1024, num_attention_heads=16), (4, 312, 936, 6)),  # 52 of 64; 4: 78
        ("2x300", dataclasses.replace(MINILM, intermediate_size=1000), (2, 300, 781, 12)),
        ("2x7", tb.BertConfig(hidden_size=5, num_attention_heads=1, intermediate_size=7), (2, 7, 10, 1)),
    ],
)
def test_what_a_size_leaves_open_follows_the_teacher(size: str, teacher: tb.BertConfig, shape: tuple) -> None:
    student = tb.student_config(size, teacher)
    sizes = student.num_hidden_layers, student.hidden_size, student.intermediate_size, student.num_attention_heads
    assert sizes == shape
    rest = {name: getattr(teacher, name) for name in ("vocab_size", "max_position_embeddings", "id2label")}
    assert dataclasses.replace(student, **rest) == student


def test_a_pruned_teachers_head_width_is_not_passed_on() -> None:
    student = tb.student_config("2x192", dataclasses.replace(MINILM, head_dim=8))
    assert (student.head_dim, student.attention_head_dim) == (None, 16)


@pytest.mark.parametrize("size", ["4-312", "4X312", "4by312", "4_312", "4,312"])
def test_sizes_that_are_written_otherwise_are_told_their_form(size: str) -> None:
    with pytest.raises(tb.InputError, match=f"^student size '{size}': a size is written as 4x312$"):
        student_shape(size)


@pytest.mark.parametrize(
    "size", ["0x384", "6x", "x384", "6x0", "6xx384", "6x384x", "6x384x1536x12x2", "6x" + "9" * 5000]
)
def test_sizes_of_another_form_are_refused(size: str) -> None:
    with pytest.raises(tb.InputError, match=r"^student size '.*': give LAYERSxWIDTH \(6x384\), .* at least 1$"):
        student_shape(size)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (
            "2x383",
            "^student size '2x383': no number of attention heads from 2 to the teacher's 12 divides the width 383",
        ),
        ("2x384x1536x5", "^student '2x384x1536x5': num_attention_heads 5 does not divide hidden_size 384"),
        ("2x1", "from 2 to the teacher's 12 divides the width 1"),
    ],
)
def test_sizes_without_heads_that_fit_are_refused(size: str, message: str) -> None:
    with pytest.raises(tb.InputError, match=message):
        tb.student_config(size, MINILM)


@pytest.mark.parametrize("model", ["bert", "owner/6x384", "./6x384", "x", "model-6x384", ""])
def test_other_names_are_no_sizes(model: str) -> None:
    assert student_shape(model) is None


def test_a_directory_of_a_sizes_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert student_shape("6x384") == {"num_hidden_layers": 6, "hidden_size": 384}
    (tmp_path / "6x384").mkdir()
    assert student_shape("6x384") is None


@pytest.mark.long
@pytest.mark.parametrize(("size", "start"), [("2x16", "random"), ("2x16", "spectral"), ("2x32", "copy")])
def test_every_start_takes_a_size(size: str, start: str, teacher: Path, reviews: Path, tmp_path: Path) -> None:
    experiment = tb.Experiment(
        task="classification",
        source=tb.DataSource(data=str(reviews)),
        model=size,
        teacher=str(teacher),
        stages=(tb.Stage("transformer", max_steps=2), tb.Stage("prediction", max_steps=2)),
        start=start,
        max_length=16,
    )
    result = tb.run(experiment, tmp_path / "run")
    assert "accuracy" in result.scores
    config, _ = tb.load_hf(result.directory)
    width = int(size.split("x")[1])
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (2, width, 2 * width)
    assert config.num_attention_heads == 4


@pytest.mark.long
def test_a_population_of_a_size_learns_from_raw_text(pretrained: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("we bought a bag of chips .\nit was very tasty .\n\nthe chips burnt .\n" * 8)
    command = [
        "pretrain",
        "--corpus",
        str(tmp_path / "text.txt"),
        "--teacher",
        str(pretrained),
        "--student",
        "1x16x24x2",
    ]
    options = ["--max-steps", "1", "--batch-size", "4", "--max-length", "16", "--population", "2"]
    run_here([sys.executable, "-m", "tinybert_jax.cli", *command, *options, "--out", str(tmp_path / "run")])
    for member in ("member0", "member1"):
        config = json.loads((tmp_path / "run" / member / "student" / "config.json").read_text())
        names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
        assert [config[name] for name in names] == [1, 16, 24, 2]


def test_a_size_without_a_teacher_is_refused() -> None:
    with pytest.raises(tb.InputError, match="student '2x16' takes its vocabulary from a teacher"):
        tb.Experiment("sst2", tb.DataSource(data="d"), "2x16", (tb.Stage("supervised"),))


def test_a_student_without_token_types_is_of_the_family_that_has_none() -> None:
    teacher = tb.BertConfig(classifier_dropout=None)
    student = student_config("6x768", teacher, token_types=False)
    assert (student.model_type, student.type_vocab_size, student.classifier_dropout) == ("distilbert", 0, 0.2)
    roberta = dataclasses.replace(teacher, model_type="roberta", pad_token_id=1)
    assert student_config("6x768", roberta, token_types=False).model_type == "roberta"  # as DistilRoBERTa
