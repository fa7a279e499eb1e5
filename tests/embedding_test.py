"""Embedding models through the real program: distilled from raw sentences, scored, asked, exported."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import BAD, GOOD, NEUTRAL, TINY, logged, rest_long, write_json, write_model, write_sentence_model
from in_process import assert_refused, search_little, tinybert

import tinybert_jax as tb
from tinybert_jax.inference import evaluate

LENGTH = 16  # one bucket, so one compilation
WORDS = [*NEUTRAL, *GOOD, *BAD]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sentences.txt, and dev.tsv of pairs that are the more alike, the more words they share."""
    random, path = np.random.default_rng(0), tmp_path_factory.mktemp("texts")
    sentences = [" ".join(random.choice(WORDS, 8)) for _ in range(192)]
    (path / "sentences.txt").write_text("\n".join(sentences) + "\n")
    lines = ["sentence1\tsentence2\tscore"]
    for _ in range(64):
        words, shared = random.choice(WORDS, 8), int(random.integers(9))
        other = [*words[:shared], *random.choice(WORDS, 8 - shared)]
        lines.append(f"{' '.join(words)}\t{' '.join(random.permutation(other))}\t{5 * shared / 8}")
    (path / "dev.tsv").write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def source(texts: Path) -> tb.DataSource:
    return tb.DataSource(unlabelled=(str(texts / "sentences.txt"),), dev=str(texts / "dev.tsv"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher")
    plain = write_model(path / "plain", hidden_size=32, num_hidden_layers=4, intermediate_size=64)
    return write_sentence_model(path / "teacher", plain)


@pytest.fixture(scope="module")
def run(source: tb.DataSource, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A student half as wide, its layers distilled first, and the directory of its run."""
    stages = (
        tb.Stage("transformer", epochs=8, learning_rate=5e-3, schedule="constant"),
        tb.Stage("embedding", epochs=16, learning_rate=5e-3, evaluate_every=24),
    )
    out = tmp_path_factory.mktemp("run") / "run"
    experiment = tb.Experiment("embedding", source, "2x16", stages, str(teacher), max_length=LENGTH)
    return tb.run(experiment, out)


@pytest.mark.long
def test_an_mpnet_as_all_mpnet_base_teaches_its_vectors_to_a_narrower_one(
    source: tb.DataSource, texts: Path, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
    plain = write_model(tmp_path / "plain", family="mpnet", **sizes)
    teacher = write_sentence_model(tmp_path / "teacher", plain)
    stages = (
        tb.Stage("transformer", epochs=4, learning_rate=5e-3),
        tb.Stage("embedding", epochs=8, learning_rate=5e-3, evaluate_every=10**6),
    )
    experiment = tb.Experiment("embedding", source, "1x16", stages, str(teacher), max_length=LENGTH)
    result = tb.run(experiment, tmp_path / "run")
    assert json.loads((result.directory / "config.json").read_text())["architectures"] == ["MPNetModel"]
    vectors, expected = (tb.load_predictor(path).embed(sentences(texts)) for path in (result.directory, teacher))
    assert np.sum(vectors * expected, axis=1).mean() > 0.8


def sentences(texts: Path, count: int = 32) -> list[str]:
    return (texts / "sentences.txt").read_text().splitlines()[:count]


def test_a_student_learns_its_teacher_s_vectors_from_raw_sentences(
    run: Any, source: tb.DataSource, teacher: Path, texts: Path
) -> None:
    assert run.teacher_scores["spearman"] > 0.7
    assert run.scores["spearman"] > 0.8 * run.teacher_scores["spearman"]
    lines = logged(run.directory.parent)
    losses = [line["loss"] for line in lines if line["stage"] == "2-embedding" and "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    assert evaluate.evaluate(str(run.directory), "embedding", tb.DataSource(dev=source.dev)) == run.scores
    student, taught = (tb.load_predictor(path) for path in (run.directory, teacher))
    vectors, expected = (predictor.embed(sentences(texts)) for predictor in (student, taught))
    assert vectors.shape == (32, 32)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert np.sum(vectors * expected, axis=1).mean() > 0.9
    assert student.embed([]).shape == (0, 32)
    np.testing.assert_array_equal(student.embed([f"  {sentences(texts)[0]} "]), vectors[:1])


def test_a_student_s_directory_is_one_of_sentence_transformers(run: Any) -> None:
    modules = json.loads((run.directory / "modules.json").read_text())
    assert [module["path"] for module in modules] == ["", "1_Pooling", "2_Dense", "3_Normalize"]
    assert json.loads((run.directory / "2_Dense/config.json").read_text())["out_features"] == 32
    assert json.loads((run.directory / "sentence_bert_config.json").read_text())["max_seq_length"] == LENGTH
    card = (run.directory / "README.md").read_text()
    assert "library_name: sentence-transformers\npipeline_tag: sentence-similarity\n" in card
    assert 'predict.embed(["a text", "another text"])' in card
    assert 'SentenceTransformer("this directory")' in card


def arguments(teacher: Path, texts: Path, out: Path, *more: object) -> list[object]:
    return [
        *("distill", "--task", "embedding", "--teacher", teacher, "--student", "2x16"),
        *("--unlabelled", texts / "sentences.txt", "--dev", texts / "dev.tsv", "--max-length", LENGTH, "--out", out),
        *more,
    ]


@pytest.mark.long
def test_the_commands_distil_score_and_write_vectors(
    teacher: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    steps = ("--transformer-steps", 2, "--prediction-steps", 2, "--embedding-loss", "similarity")
    steps += ("--embedding-width", 16, "--matryoshka-dims", 8, 4)
    assert tinybert(monkeypatch, *arguments(teacher, texts, tmp_path / "run", *steps)) == 0
    printed = capsys.readouterr()
    assert "recipe: narrow student" in printed.out
    assert "note: no page" not in printed.err
    described = json.loads((tmp_path / "run/experiment.json").read_text())["experiment"]["stages"]
    objectives = [stage["objective"] for stage in described]
    expected = {"name": "embedding", "embedding_loss": "similarity", "embedding_width": 16, "matryoshka_dims": [8, 4]}
    assert objectives[1] == expected
    assert objectives[0]["name"] == "transformer"
    page = (tmp_path / "run/report.md").read_text()
    assert "spearman" in page
    assert not (tmp_path / "run/student/2_Dense").exists()  # it is as wide as the projected vectors
    assert "Rows lost and won" in page
    student = tmp_path / "run/student"
    scored = ("evaluate", "--model", student, "--task", "embedding", "--dev", texts / "dev.tsv")
    files = ("--json", tmp_path / "scores.json", "--predictions", tmp_path / "cosines.tsv")
    assert tinybert(monkeypatch, *scored, *files) == 0
    whole = json.loads((tmp_path / "scores.json").read_text())["spearman"]
    assert len((tmp_path / "cosines.tsv").read_text().splitlines()) == 65
    written = ("--input", texts / "sentences.txt", "--out", tmp_path / "vectors.jsonl")
    assert tinybert(monkeypatch, "predict", "--model", student, *written) == 0
    first = json.loads((tmp_path / "vectors.jsonl").read_text().splitlines()[0])
    expected = tb.load_predictor(student).embed(sentences(texts, 1))
    np.testing.assert_allclose(first["embedding"], expected[0], atol=1e-6)
    assert first["text"] == sentences(texts, 1)[0]
    short = ("--truncate-dim", 4)
    assert tinybert(monkeypatch, *scored, *files[:2], *short) == 0
    assert json.loads((tmp_path / "scores.json").read_text())["spearman"] != whole
    assert tinybert(monkeypatch, "predict", "--model", student, *written[:2], *short) == 0
    cut = json.loads(capsys.readouterr().out.splitlines()[-192].split("\t")[1])
    np.testing.assert_array_equal(np.float32(cut), np.float32(first["embedding"][:4]))


@pytest.mark.parametrize(
    ("mode", "width", "normalize"),
    rest_long(
        [("cls_token", None, True), ("mean_tokens", 10, True), ("max_tokens", 10, False)], [("mean_tokens", 10, True)]
    ),
)
def test_an_export_gives_the_vectors_and_the_states_that_are_pooled(
    mode: str, width: int | None, normalize: bool, texts: Path, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = write_sentence_model(tmp_path / "model", TINY, mode, width, normalize)
    if mode == "max_tokens":
        dense = (model / "2_Dense/config.json").read_text().replace("linear.Identity", "activation.Tanh")
        (model / "2_Dense/config.json").write_text(dense)
    config, params = tb.load_hf(model)
    tokenizer = tb.load_tokenizer(model, config)
    params = {name: part for name, part in params.items() if name != "classifier"}
    tb.save_hf(tmp_path / "bare", config, params, tokenizer)
    (result,) = tb.export_model(str(tmp_path / "bare"), tmp_path / "onnx")
    assert result.agreement is None
    session = onnxruntime.InferenceSession(result.file)
    assert [output.name for output in session.get_outputs()] == ["last_hidden_state", "sentence_embedding"]
    words = ["the film was good", "a dull plot and not a funny one"]
    ours, exported = (tb.load_predictor(tmp_path / name).embed(words) for name in ("bare", "onnx"))
    np.testing.assert_allclose(exported, ours, atol=1e-5)
    for name in ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"):  # and weights of a Dense
        assert (tmp_path / "onnx" / name).read_text() == (tmp_path / "bare" / name).read_text()
    assert (tmp_path / "onnx/2_Dense/model.safetensors").is_file() == (width is not None)
    batch = tokenizer(words, return_tensors="np", padding=True)
    feed = {put.name: np.asarray(batch[put.name], np.int64) for put in session.get_inputs()}
    states = session.run(["last_hidden_state"], feed)[0]
    bare = {name: part for name, part in params["encoder"].items() if name != "pooler"}
    inputs = (np.asarray(feed[name], np.int32) for name in ("input_ids", "attention_mask", "token_type_ids"))
    out = tb.BertModel(config, add_pooler=False).apply({"params": bare}, *map(jnp.asarray, inputs))
    np.testing.assert_allclose(states, out.last_hidden_state, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("form", ["onnx-int8", "stablehlo"])
def test_other_formats_give_the_vectors_too(run: Any, form: str, texts: Path, tmp_path: Path) -> None:
    tb.export_model(str(run.directory), tmp_path / "out", (form,))
    ours, exported = (tb.load_predictor(path).embed(sentences(texts)) for path in (run.directory, tmp_path / "out"))
    assert np.sum(ours * exported, axis=1).min() > (0.97 if "int8" in form else 0.99999)


def test_an_onnx_file_without_vectors_is_refused(run: Any, texts: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    tb.export_model(str(run.directory), tmp_path / "out")
    file = tmp_path / "out/onnx/model.onnx"
    model = onnx.load(file)
    del model.graph.output[1]
    onnx.save(model, file)
    with pytest.raises(tb.InputError, match="has no output sentence_embedding: export the model's directory"):
        tb.load_predictor(tmp_path / "out").embed(sentences(texts))


def test_vectors_are_cut_to_their_first_numbers(teacher: Path, texts: Path) -> None:
    some = sentences(texts, 3)
    whole, cut = (tb.load_predictor(teacher, truncate_dim=dim) for dim in (None, 8))
    np.testing.assert_array_equal(cut.embed(some), whole.embed(some)[:, :8])
    assert cut.embed([]).shape == (0, 8)
    for dim in (0, 33):
        with pytest.raises(tb.InputError, match=f"its vectors have 32 numbers; truncate_dim is {dim}"):
            tb.load_predictor(teacher, truncate_dim=dim)
    with pytest.raises(tb.InputError, match="which gives no vectors: leave truncate_dim out"):
        tb.load_predictor(TINY, truncate_dim=8)


def test_retrieval_is_scored_by_the_same_model(teacher: Path, tmp_path: Path) -> None:
    texts = [" ".join(words) for words in (GOOD[:3], BAD[:3], NEUTRAL[:3])]
    lines = ["query\tpassage\tlabel", *(f"{text}\t{text} {NEUTRAL[0]}\t1" for text in texts)]
    (tmp_path / "dev.tsv").write_text("\n".join(lines) + "\n")
    scores = evaluate.evaluate(str(teacher), "retrieval", tb.DataSource(dev=str(tmp_path / "dev.tsv")))
    assert scores == {"ndcg_at_10": 1.0, "mrr_at_10": 1.0}


def test_predictors_say_what_they_give(run: Any, blank_student: Path) -> None:
    predictor = tb.load_predictor(run.directory)
    with pytest.raises(ValueError, match="its predictor gives `embed`"):
        predictor(["a text"])
    with pytest.raises(ValueError, match="give a list of texts, even of one"):
        predictor.embed("a text")
    with pytest.raises(ValueError, match=r"give texts; \('a', 'b'\) is none"):
        predictor.embed([("a", "b")])
    with pytest.raises(tb.InputError, match=r"holds no modules\.json of sentence-transformers"):
        tb.load_predictor(blank_student, head="embedding")


def test_what_does_not_fit_is_refused_in_a_line(
    teacher: Path, texts: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def refused(message: str, *given: object) -> None:
        assert_refused(capsys, tinybert(monkeypatch, *given), message)

    out = tmp_path / "run"
    usual = arguments(teacher, texts, out)
    refused("holds no modules.json of sentence-transformers", *arguments(pretrained, texts, out))
    refused("--embedding-loss l1: give one of", *usual, "--embedding-loss", "l1")
    refused("--stage transformer does not read --embedding-loss", *usual, "--stage", "transformer", *LOSS)
    refused("--stage both does not read --temperature", *usual, "--temperature", 2)
    refused("stage 'patient' learns labels, or outputs like them", *usual, "--stage", "patient")
    (tmp_path / "labels.jsonl").write_text('{"text": "a", "value": 1}\n')
    refused("the teacher of task 'embedding' is one model", *arguments(tmp_path / "labels.jsonl", texts, out))
    both = shutil.copytree(teacher, tmp_path / "other")
    refused("the teacher of task 'embedding' is one model", *usual[:5], both, *usual[5:])
    other = ("finetune", "--task", "embedding", "--model", teacher, "--train", texts / "sentences.tsv")
    (texts / "sentences.tsv").write_text("text\n" + (texts / "sentences.txt").read_text())
    message = "stage 'supervised' learns labels, or outputs like them, which the task has not"
    refused(message, *other, "--dev", texts / "dev.tsv", "--max-length", LENGTH, "--out", out)
    data = ("--train", texts / "sentences.tsv", "--dev", texts / "dev.tsv")
    pruned = ("compress", "--task", "embedding", "--model", teacher, *data, "--prune", 0.5)
    refused("prune needs a model with the head of a task", *pruned, "--out", out)
    assert not out.exists()


LOSS = ("--embedding-loss", "cosine")


@pytest.mark.long
def test_a_compressed_embedding_model_is_one(teacher: Path, texts: Path, tmp_path: Path) -> None:
    (texts / "some.tsv").write_text("text\n" + "\n".join(sentences(texts)) + "\n")
    source = tb.DataSource(train=str(texts / "some.tsv"), dev=str(texts / "dev.tsv"))
    chain = tb.compress(str(teacher), "embedding", source, (tb.Quantize(8),), tmp_path / "out", max_length=LENGTH)
    assert chain[-1].scores["spearman"] > 0.7
    vectors = [tb.load_predictor(path).embed(sentences(texts)) for path in (teacher, tmp_path / "out")]
    assert np.sum(vectors[0] * vectors[1], axis=1).min() > 0.98


@pytest.mark.long
def test_a_default_prompt_stands_before_the_rows_of_teacher_and_student(
    teacher: Path, source: tb.DataSource, texts: Path, pretrained: Path, tmp_path: Path
) -> None:
    plain = tb.DataSource(dev=source.dev)
    without = evaluate.evaluate(str(teacher), "embedding", plain, max_length=LENGTH)
    prompted = Path(shutil.copytree(teacher, tmp_path / "prompted"))
    settings = {"prompts": {"query": "awful bland bitter "}, "default_prompt_name": "query"}
    write_json(prompted / "config_sentence_transformers.json", settings)
    with_prompt = evaluate.evaluate(str(prompted), "embedding", plain, max_length=LENGTH)
    assert with_prompt != without

    def distilled(model: Path, *stages: tb.Stage) -> Any:
        experiment = tb.Experiment("embedding", source, str(model), stages, str(prompted), max_length=LENGTH)
        return tb.run(experiment, tmp_path / "run")

    layers, vectors = tb.Stage("transformer", max_steps=1), tb.Stage("embedding", max_steps=1)
    with pytest.raises(tb.InputError, match="have different vocabularies, or default prompts, so their tokens"):
        distilled(teacher, layers, vectors)
    run = distilled(pretrained, vectors)  # without vectors of its own, it takes all that makes the teacher's
    assert run.teacher_scores == with_prompt
    assert evaluate.evaluate(str(run.directory), "embedding", plain) == run.scores
    assert json.loads((run.directory / "config_sentence_transformers.json").read_text()) == settings


@pytest.mark.long
def test_other_tasks_leave_the_modules_behind(teacher: Path, reviews: Path, texts: Path, tmp_path: Path) -> None:
    source = tb.DataSource(data=str(reviews))
    stages = (tb.Stage("supervised", max_steps=1),)
    experiment = tb.Experiment("classification", source, str(teacher), stages, max_length=LENGTH)
    classifier = tb.run(experiment, tmp_path / "classifier").directory
    general = tb.Experiment(
        "corpus",
        tb.CorpusSource((str(texts / "sentences.txt"),), one_document_per_line=True),
        "2x16",
        (tb.Stage("transformer", max_steps=1),),
        str(teacher),
        max_length=LENGTH,
    )
    for directory in (classifier, tb.run(general, tmp_path / "general").directory):
        assert not (directory / "modules.json").exists()
    assert tb.load_predictor(classifier)(["a fine bag"])[0].label in ("good", "bad")


@pytest.mark.long
def test_a_search_finds_a_student_with_the_teachers_width(
    teacher: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    search_little(monkeypatch, "2x16", 12)
    data = ["--unlabelled", texts / "sentences.txt", "--dev", texts / "dev.tsv", "--max-length", LENGTH]
    aim, out = ["--max-mb", 100], tmp_path / "out"
    code = tinybert(monkeypatch, "shrink", "--teacher", teacher, "--task", "embedding", *data, *aim, "--out", out)
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "teacher: spearman " in printed
    assert "cutting the teacher" not in printed  # which needs labels
    stages = runpy.run_path(str(out / "pick.py"))["experiment"].stages if (out / "pick.py").is_file() else ()
    assert [stage.objective.name for stage in stages] in ([], ["transformer", "embedding"])  # []: the teacher is best
    student = out / "candidates/2x16/rung-1/student"
    assert tb.load_predictor(student).embed(["good"]).shape == (1, 32)
    assert tb.load_predictor(out / "export").embed(["good"]).shape == (1, 32)
    assert "spearman" in (out / "report.md").read_text().lower()
