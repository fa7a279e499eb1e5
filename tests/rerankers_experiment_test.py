"""The experiment on rerankers: its queries, and the commands that it runs."""

from __future__ import annotations

import dataclasses
import importlib
import shutil
from collections import Counter
from pathlib import Path
from types import ModuleType

import jax
import pytest
from conftest import write_model

import tinybert_jax as tb
from tinybert_jax.models.files.tokenizer import load_tokenizer
from tinybert_jax.models.heads import HEADS

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
TEXT = "\n".join(
    f" = {title} = \n\n = = Kinds = = \n"
    + "\n".join(
        f" We bought the {title} {i} . It was <unk> great {title} {i} . Yes . A bag of {title} was {i} stale . "
        for i in range(4)
    )
    for title in ("Chips", "Bags", "Fruit")
)


@pytest.fixture
def rerankers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return importlib.import_module("rerankers")


def test_a_query_is_a_sentence_of_its_relevant_passage(rerankers: ModuleType) -> None:
    rows = rerankers.queries(TEXT, passages=4, most=10)
    assert rows == rerankers.queries(TEXT, 4, 10) != rerankers.queries(TEXT, 4, 10, seed=1)
    assert Counter(query for query, _, _ in rows) == dict.fromkeys([query for query, _, _ in rows], 4)
    assert [relevance for _, _, relevance in rows] == [1, 0, 0, 0] * 10
    for query, passage, relevance in rows:
        number = next(word for word in query.split() if word.isdigit())
        assert query not in passage
        assert "<unk>" not in query + passage
        if relevance:
            assert number in passage.split()


@pytest.mark.long
def test_students_and_students_of_labels_alone_stand_in_one_table(
    rerankers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    encoder = write_model(tmp_path / "encoder", hidden_size=16, num_hidden_layers=1, intermediate_size=32)
    config = dataclasses.replace(tb.load_hf(encoder)[0], id2label=("score",))
    params = tb.init_params(HEADS["sequence"].model(config), jax.random.key(0))
    commands = []

    def record(out: Path, *command: str) -> Path:
        commands.append((out.name, command))
        tb.save_hf(out / "student", config, params, load_tokenizer(encoder, config))
        return out / "student"

    monkeypatch.setattr(rerankers, "tinybert", record)
    # int8 is too coarse for random parameters
    monkeypatch.setattr("tinybert_jax.export_model", lambda model, out, formats: shutil.copytree(model, out))
    (tmp_path / "text.txt").write_text(TEXT)
    paths = ["--text", str(tmp_path / "text.txt"), "--dev-text", str(tmp_path / "text.txt"), "--max-length", "24"]
    more = ["--students", "2x8", "--seeds", "0", "1", "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["rerankers.py", "--model", str(encoder), *paths, *more])
    rerankers.main()
    names = ["teacher", "2x8-0", "2x8-1", "2x8-labels-alone-0", "2x8-labels-alone-1"]
    assert [name for name, _ in commands] == names
    assert [command[0] for _, command in commands] == ["finetune", *["distill"] * 4]
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line[0] for line in lines[2:]] == ["teacher", "2x8", "2x8, labels alone"]
    assert [line[2] for line in lines[2:]] == ["100.0"] * 3  # each "student" is the teacher
