"""The experiment on embedding models: what it makes of a teacher without training, and the commands that it runs."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import write_model, write_sentence_model

import tinybert_jax as tb
from tinybert_jax.data.tokens import Tokens
from tinybert_jax.teachers.projected import principal_directions

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
TEXTS = "the bag was great\nawful chips\nwe bought a bag of chips\nquite a stale and bitter bag\n"
PAIRS = "sentence1\tsentence2\tscore\nthe bag\ta bag\t5.0\ngreat chips\tawful chips\t1.5\nso stale\tvery fine\t0.0\n"


@pytest.fixture
def embeddings(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return importlib.import_module("embeddings")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "texts.txt").write_text(TEXTS)
    (tmp_path / "dev.tsv").write_text(PAIRS)
    plain = write_model(tmp_path / "plain", hidden_size=16, num_hidden_layers=3, intermediate_size=32)
    write_sentence_model(tmp_path / "teacher", plain)
    write_sentence_model(tmp_path / "dense", plain, width=6, normalize=False)
    return tmp_path


@pytest.mark.long
@pytest.mark.parametrize("name", ["teacher", "dense"])
def test_a_projected_teacher_gives_its_vectors_on_their_directions(
    embeddings: ModuleType, files: Path, name: str
) -> None:
    teacher, out = str(files / name), files / "projected"
    source = tb.DataSource(unlabelled=(str(files / "texts.txt"),), dev=str(files / "dev.tsv"))
    assert embeddings.projected(teacher, 3, source, 12, out) == out
    texts = TEXTS.splitlines()
    vectors = tb.load_predictor(teacher).embed(texts)
    expected = vectors @ principal_directions(vectors, 3)
    if name == "teacher":
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(tb.load_predictor(out).embed(texts), expected, atol=1e-4)


def test_the_mean_of_words_leaves_special_tokens_out(embeddings: ModuleType) -> None:
    table = np.arange(20.0, dtype=np.float32).reshape(10, 2)
    ids, offsets = np.array([1, 4, 6, 2, 1, 2], np.int32), np.array([0, 4, 6])
    tokens = Tokens(ids, offsets, np.array([4, 2], np.int32), np.zeros(2), "")
    assert embeddings.word_means(table, tokens, [1, 2]).tolist() == [[10.0, 11.0], [0.0, 0.0]]


@pytest.mark.long
def test_students_and_what_is_untrained_stand_in_one_table(
    embeddings: ModuleType, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    commands, out = [], files / "out"

    def record(out: Path, *command: str) -> Path:
        commands.append((out.name, command))
        return files / "teacher"

    monkeypatch.setattr(embeddings, "tinybert", record)
    paths = ["--teacher", str(files / "teacher"), "--sentences", str(files / "texts.txt")]
    data = ["--dev", str(files / "dev.tsv"), "--max-length", "12", "--out", str(out)]
    sizes = ["--students", "2x8", "--embedding-widths", "8", "--first-layers", "1", "--widths", "3"]
    more = [*sizes, "--seeds", "3", "4", "--prediction-steps", "7"]
    monkeypatch.setattr("sys.argv", ["embeddings.py", *paths, *data, *more])
    embeddings.main()
    assert [name for name, _ in commands] == ["2x8-3", "2x8-4", "2x8-to-8-3", "2x8-to-8-4"]
    assert commands[2][1][-7:-3] == ("--prediction-steps", "7", "--embedding-width", "8")
    assert commands[1][1][:7] == ("distill", "--task", "embedding", *paths[:2], "--student", "2x8")
    assert commands[1][1][-5:] == ("--prediction-steps", "7", "--no-report", "--seed", "4")
    assert (out / "table.md").read_text() in capsys.readouterr().out
    lines = [line.strip("| ").split(" | ") for line in (out / "table.md").read_text().splitlines()[2:8]]
    names = ["teacher", "its first 1 layers", "projected to 3", "mean of word embeddings"]
    assert [line[0] for line in lines] == [*names, "student 2x8", "student 2x8-to-8"]
    assert [line[3] for line in lines] == ["16", "16", "3", "16", "16", "16"]
    assert lines[0][2] == lines[4][2] == "100.0"
    assert lines[4][1] == f"{lines[0][1]} ± 0.0"  # each "student" is the teacher
    assert tb.load_hf(out / "first-1")[0].num_hidden_layers == 1
    macs = [float(line[5]) for line in lines]
    assert macs[3] == 0.0
