"""Rerankers through the real program: a teacher learnt from labels, a student from its scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BAD, GOOD, NEUTRAL, logged, write_model
from in_process import assert_refused, search_little, tinybert

import tinybert_jax as tb
from tinybert_jax.inference import evaluate
from tinybert_jax.models.parameters import forward_flops
from tinybert_jax.training.chain import check_compression
from tinybert_jax.training.inputs import load_inputs

LENGTH = 16  # one bucket, so one compilation
IDENTITY = "torch.nn.modules.linear.Identity"


def write_rows(path: Path, queries: int, seed: int) -> None:
    """Four passages for each query. The relevant one, at any place, has a word that praises; the others blame."""
    random = np.random.default_rng(seed)
    lines = ["query\tpassage\tlabel"]
    for _ in range(queries):
        query, relevant = " ".join(random.choice(NEUTRAL, 4)), random.integers(4)
        for place in range(4):
            words = [*random.choice(NEUTRAL, 5), random.choice(GOOD if place == relevant else BAD)]
            lines.append(f"{query}\t{' '.join(random.permutation(words))}\t{int(place == relevant)}")
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows")
    write_rows(path / "train.tsv", 96, 0)
    write_rows(path / "dev.tsv", 32, 1)
    return path


@pytest.fixture(scope="module")
def source(rows: Path) -> tb.DataSource:
    return tb.DataSource(train=str(rows / "train.tsv"), dev=str(rows / "dev.tsv"))


@pytest.fixture(scope="module")
def teacher(source: tb.DataSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reranker that learnt from labels, with an entry of sentence-transformers."""
    path = tmp_path_factory.mktemp("teacher")
    plain = write_model(path / "plain", hidden_size=32, num_hidden_layers=2, intermediate_size=64)
    stages = (tb.Stage("ranking_labels", epochs=6, batch_size=16, learning_rate=3e-3, evaluate_every=18),)
    directory = tb.run(tb.Experiment("ranking", source, str(plain), stages, max_length=LENGTH), path / "run").directory
    config = json.loads((directory / "config.json").read_text())
    assert "sentence_transformers" not in config
    entry = {"sentence_transformers": {"activation_fn": IDENTITY, "version": "5.0.0"}}
    (directory / "config.json").write_text(json.dumps(config | entry))
    return directory


@pytest.fixture(scope="module")
def run(source: tb.DataSource, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    stages = (
        tb.Stage("transformer", epochs=4, learning_rate=5e-3, schedule="constant"),
        tb.Stage("ranking", epochs=10, batch_size=16, learning_rate=5e-3, evaluate_every=30),
    )
    out = tmp_path_factory.mktemp("run") / "run"
    return tb.run(tb.Experiment("ranking", source, "2x16", stages, str(teacher), max_length=LENGTH), out)


@pytest.mark.long
def test_the_steps_of_gradual_pruning_are_those_of_queries(source: tb.DataSource, teacher: Path) -> None:
    gradual = tb.Stage(tb.Ranking(), epochs=1, batch_size=16, compression=(tb.GradualPrune(0.5),))
    experiment = tb.Experiment("ranking", source, str(teacher), (gradual,), str(teacher), max_length=LENGTH)
    with pytest.raises(tb.InputError, match="in at least 10 steps, and this one has 6: train longer"):
        check_compression(experiment, load_inputs(experiment), members=1)  # 96 queries, 384 rows


@pytest.mark.long
def test_a_student_learns_its_teachers_margins(run: Any, source: tb.DataSource) -> None:
    assert run.teacher_scores["ndcg_at_10"] > 0.9
    assert run.scores["ndcg_at_10"] > 0.9
    assert run.scores["mrr_at_10"] > 0.9
    losses = [line["loss"] for line in logged(run.directory.parent) if line["stage"] == "2-ranking" and "loss" in line]
    assert losses[-1] < 0.3 * losses[0]
    a_step = 16 * 4 * 3 * forward_flops(tb.load_hf(run.directory)[0], LENGTH)  # 4 passages; the teacher's are known
    speeds = [line for line in logged(run.directory.parent, "speed.jsonl") if line["stage"] == "2-ranking"]
    for line, before in zip(speeds, [0, *(line["step"] for line in speeds)], strict=False):
        assert line["flops"] == pytest.approx((line["step"] - before) * a_step)
    scores = evaluate.evaluate(str(run.directory), "ranking", tb.DataSource(dev=source.dev))
    assert scores == pytest.approx(run.scores, abs=1e-6)


@pytest.mark.long
def test_a_students_directory_is_one_of_a_cross_encoder(run: Any, teacher: Path) -> None:
    config = json.loads((run.directory / "config.json").read_text())
    assert config["sentence_transformers"] == {"activation_fn": IDENTITY}
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert len(config["id2label"]) == 1
    card = (run.directory / "README.md").read_text()
    assert "library_name: sentence-transformers\npipeline_tag: text-ranking\n" in card
    assert 'predict([("a query", "a passage"), ("a query", "another passage")])' in card
    assert 'CrossEncoder("this directory")' in card
    tb.export_model(str(run.directory), run.directory.parent / "onnx")
    pairs = [("the bag", "a great bag"), ("the bag", "a stale bag")]
    assert "pipeline_tag: text-ranking" in (run.directory.parent / "onnx/README.md").read_text()
    ours, exported = (tb.load_predictor(path)(pairs) for path in (run.directory, run.directory.parent / "onnx"))
    assert ours[0].value > ours[1].value
    np.testing.assert_allclose([x.value for x in exported], [x.value for x in ours], atol=1e-4)


@pytest.mark.long
def test_the_commands_train_distil_score_and_rank(
    teacher: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    data = ("--task", "ranking", "--train", rows / "train.tsv", "--dev", rows / "dev.tsv", "--max-length", LENGTH)
    steps = ("--stage", "prediction", "--prediction-steps", 4, "--ranking-loss", "listwise", "--temperature", "2:1")
    options = ("--teacher", teacher, "--student", "2x16", *steps, "--candidates", 3, "--accumulation-steps", 2)
    assert tinybert(monkeypatch, "distill", *data, *options, "--out", tmp_path / "run") == 0
    described = json.loads((tmp_path / "run/experiment.json").read_text())["experiment"]["stages"][0]["objective"]
    assert (described["name"], described["ranking_loss"], described["candidates"]) == ("ranking", "listwise", 3)
    page = (tmp_path / "run/report.md").read_text()
    assert "ndcg\\_at\\_10" in page
    student = tmp_path / "run/student"
    scored = ("evaluate", "--model", student, "--task", "ranking", "--dev", rows / "dev.tsv")
    assert tinybert(monkeypatch, *scored, "--json", tmp_path / "scores.json") == 0
    assert {"ndcg_at_10", "mrr_at_10"} <= json.loads((tmp_path / "scores.json").read_text()).keys()
    columns = ("--text-columns", "query", "passage", "--input", rows / "dev.tsv", "--out", tmp_path / "scores.tsv")
    assert tinybert(monkeypatch, "predict", "--model", student, *columns) == 0
    header, first, *_ = (tmp_path / "scores.tsv").read_text().splitlines()
    query, passage, *_ = (rows / "dev.tsv").read_text().splitlines()[1].split("\t")
    expected = tb.load_predictor(student)([(query, passage)])[0].value
    assert float(dict(zip(header.split("\t"), first.split("\t"), strict=True))["prediction"]) == pytest.approx(
        expected, abs=1e-5
    )
    compress = ("compress", *data, "--model", student, "--quantize", "int8", "--out", tmp_path / "int8")
    assert tinybert(monkeypatch, *compress) == 0
    for card in (student / "README.md", tmp_path / "int8/README.md"):
        for line in ("pipeline_tag: text-ranking", "library_name: sentence-transformers", "`CrossEncoder("):
            assert line in card.read_text()
    one = ("finetune", *data, "--model", student, "--max-steps", 1, "--out", tmp_path / "tuned")
    assert tinybert(monkeypatch, *one) == 0
    tuned = json.loads((tmp_path / "tuned/experiment.json").read_text())["experiment"]["stages"][0]["objective"]
    assert tuned == {"name": "ranking_labels", "candidates": 8}
    capsys.readouterr()
    alone = ("distill", *data, "--teacher", teacher, "--student", "2x16", "--out", tmp_path / "no")
    for message, *more in (
        ("stage 'patient' learns single rows, and the task has queries", "--stage", "patient"),
        ("--ranking-loss pairs: give one of", "--ranking-loss", "pairs"),
        ("temperature is 2.0, and margin_mse has none: take listwise, or leave it out", "--temperature", 2),
        ("--stage both does not read --hard-weight", "--hard-weight", 1),
        ("--stage transformer does not read --candidates", "--stage", "transformer", "--candidates", 4),
    ):
        assert_refused(capsys, tinybert(monkeypatch, *alone, *more), message)


@pytest.mark.long
def test_known_scores_and_unlabelled_rows_teach_too(rows: Path, tmp_path: Path) -> None:
    """A file of scores is a teacher, and rows without labels are queries with passages as well."""
    lines = [line.split("\t") for line in (rows / "train.tsv").read_text().splitlines()[1:]]
    (tmp_path / "more.tsv").write_text("query\tpassage\n" + "\n".join("\t".join(line[:2]) for line in lines) + "\n")
    with (tmp_path / "scores.jsonl").open("w") as file:
        for query, passage, label in lines:
            file.write(json.dumps({"text": [query, passage], "value": 3 * float(label)}) + "\n")
    source = tb.DataSource(unlabelled=(str(tmp_path / "more.tsv"),), dev=str(rows / "dev.tsv"))
    plain = write_model(tmp_path / "plain", hidden_size=16, num_hidden_layers=1, intermediate_size=32)
    stages = (tb.Stage(tb.Ranking(candidates=4), epochs=8, batch_size=16, learning_rate=5e-3, evaluate_every=24),)
    experiment = tb.Experiment(
        "ranking", source, str(plain), stages, str(tmp_path / "scores.jsonl"), max_length=LENGTH
    )
    assert tb.run(experiment, tmp_path / "run").scores["ndcg_at_10"] > 0.9


@pytest.mark.long
def test_a_search_finds_a_smaller_reranker(
    teacher: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    search_little(monkeypatch, "2x16", 12)
    data = ["--train", rows / "train.tsv", "--dev", rows / "dev.tsv", "--max-length", LENGTH, "--keep", "10%"]
    code = tinybert(monkeypatch, "shrink", "--teacher", teacher, "--task", "ranking", *data, "--out", tmp_path / "out")
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "teacher: ndcg_at_10 " in printed
    assert "cutting the teacher" not in printed  # which needs a label that is learnt from one row
    assert (tmp_path / "out/export/onnx/model_quantized.onnx").is_file()
