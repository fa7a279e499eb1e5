"""A search from its plan to the deployed pick, on a small teacher."""

from __future__ import annotations

import dataclasses
import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, write_model
from in_process import assert_refused, search_little, tinybert
from random_params import random_params

import tinybert_jax as tb
from tinybert_jax.models.config import BertConfig
from tinybert_jax.models.heads import HEADS
from tinybert_jax.shrink import plan as plans
from tinybert_jax.shrink import search as searches
from tinybert_jax.shrink.aim import Aim, Candidate, Outcome
from tinybert_jax.shrink.plan import Plan, described, methods, parse_time, sizes, steps_within
from tinybert_jax.shrink.report import reasons
from tinybert_jax.training.diverged import Diverged
from tinybert_jax.training.loop import Stopped

pytest.importorskip("onnxruntime")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three candidates, the teacher among them, and two short rungs."""
    search_little(monkeypatch, "2x32", 4, 8)
    monkeypatch.setattr(plans, "PRUNED", (0.5,))


def asked(teacher: Path, reviews: Path, **aim: float) -> Plan:
    source = tb.DataSource(data=str(reviews))
    return described(str(teacher), "classification", source, Aim(**aim), batch_size=32, max_length=None, seed=0)


def files(out: Path) -> dict[str, bytes]:
    return {
        name: (out / name).read_bytes() for name in ("student/model.safetensors", "export/onnx/model_quantized.onnx")
    }


@pytest.mark.long
def test_a_search_ends_the_same_wherever_it_was_stopped(
    teacher: Path, reviews: Path, few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = searches.prepare(asked(teacher, reviews, max_mb=100.0), tmp_path / "whole")
    assert plan.max_length == 16  # the teacher's
    lines: list[str] = []
    whole = searches.search(plan, tmp_path / "whole", lines.append)
    assert {outcome.candidate.name for outcome in whole.outcomes} == {"2x32", "pruned-0.5", "teacher"}
    assert whole.pick is not None
    assert whole.directory == tmp_path / "whole" / "export"
    assert any(line.startswith("rung 2 of 2: ") for line in lines)

    monkeypatch.setattr(searches, "benchmark", None)  # times are not measured again
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    plan_file = json.loads((tmp_path / "whole" / "plan.json").read_text())
    for candidate in plan_file["candidates"]:  # the pruned teacher lies in the search's directory
        candidate["model"] = candidate["model"].replace(str(tmp_path / "whole"), str(stopped))
    (tmp_path / "whole" / "starts").rename(stopped / "starts")
    (stopped / "plan.json").write_text(json.dumps(plan_file))
    train, score = searches.run, searches._score

    def stopping(name: str, calls: int) -> Any:
        real, left = {"run": train, "_score": score}[name], [calls]

        def call(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Stopped("stopped", 15)
            return real(*arguments, **named)

        return call

    for name, calls in (("run", 0), ("_score", 2), ("run", 0)):
        with monkeypatch.context() as patch:
            patch.setattr(searches, name, stopping(name, calls))
            resumed = searches.prepare(asked(teacher, reviews, max_mb=100.0), stopped, resume=True)
            with pytest.raises(Stopped):
                searches.search(resumed, stopped, lines.append)
    resumed = searches.prepare(asked(teacher, reviews, max_mb=100.0), stopped, resume=True)
    again = searches.search(resumed, stopped, lines.append)
    assert [(o.candidate.name, o.score, o.steps) for o in again.outcomes] == [
        (o.candidate.name, o.score, o.steps) for o in whole.outcomes
    ]
    assert files(stopped) == files(tmp_path / "whole")


@pytest.mark.long
def test_the_command_prints_plan_pick_and_reason(
    teacher: Path, reviews: Path, few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    out = tmp_path / "out"
    data = ["--teacher", teacher, "--task", "classification", "--data", reviews]
    assert tinybert(monkeypatch, "shrink", *data, "--keep", "10%", "--out", out) == 0
    printed = capsys.readouterr().out
    assert "about 0 minutes" in printed
    assert "it is the fastest that keeps 10.0% of the teacher's score on the dev rows" in printed
    pick = runpy.run_path(str(out / "pick.py"))["experiment"]
    assert isinstance(pick, tb.Experiment)
    assert pick.stages[-1].max_steps == 4  # of the second rung: half of 8
    assert tb.load_predictor(out / "export")(["good"])
    page = (out / "report.md").read_text()
    assert "2x32" in page
    code = tinybert(monkeypatch, "shrink", *data, "--keep", "20%", "--out", out, "--resume")
    assert_refused(capsys, code, "was begun with aim")
    code = tinybert(monkeypatch, "shrink", *data, "--keep", "20%", "--out", out)
    assert_refused(capsys, code, "exists already; choose another --out")


def test_only_a_search_is_continued_and_with_the_budget_that_it_began_with(
    teacher: Path, reviews: Path, tmp_path: Path
) -> None:
    (tmp_path / "student").mkdir()
    plan = asked(teacher, reviews, keep=0.1)
    with pytest.raises(tb.InputError, match=r"holds no search to resume \(no plan\.json\); leave --resume out"):
        searches.prepare(plan, tmp_path, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["student"]
    plans.save(plan, tmp_path / "plan.json")
    with pytest.raises(tb.InputError, match=r"was begun with budget None, and now it is 60\.0: give the same command"):
        searches.prepare(dataclasses.replace(plan, budget=60.0), tmp_path, resume=True)
    (tmp_path / "plan.json").write_text(json.dumps({"teacher_width": 32, **plan.as_dict()}))
    with pytest.raises(tb.InputError, match=r"plan\.json: was begun by another version of tinybert_jax"):
        searches.prepare(plan, tmp_path, resume=True)


def test_the_untrained_teacher_takes_no_place_of_a_candidate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In int8 it nearly always keeps the share, and would be the one that goes on."""
    sizes = [Candidate(f"{i}x8", f"{i}x8", milliseconds=i, megabytes=i, step_seconds=1.0) for i in (1, 2, 3, 4)]
    itself = Candidate("teacher", str(TINY), milliseconds=5.0, megabytes=5.0, step_seconds=0.0)
    plan = asked_for(Aim(keep=0.97), tb.DataSource(data="reviews"))
    plan = dataclasses.replace(plan, candidates=(*sizes, itself), steps=(1, 2, 4))
    tried: list[tuple[str, int]] = []

    def outcome(plan: Plan, candidate: Candidate, rung: int, *_: Any) -> Outcome:
        tried.append((candidate.name, rung))
        return Outcome(candidate, 0.9 if candidate is itself else 0.1 * candidate.milliseconds, 1, rung)

    monkeypatch.setattr(searches, "_score", lambda *_: 0.9)
    monkeypatch.setattr(searches, "_outcome", outcome)
    monkeypatch.setattr(searches, "_deployed", lambda *_: tmp_path)
    ended = searches.search(plan, tmp_path, print)
    assert tried == [
        ("teacher", 0),
        *(("1x8", 0), ("2x8", 0), ("3x8", 0), ("4x8", 0)),
        *(("3x8", 1), ("4x8", 1)),
        ("4x8", 2),
    ]
    assert ended.pick is not None
    assert ended.pick.candidate is itself  # nothing faster reached it


def test_a_teacher_that_cannot_be_pruned_has_candidates_of_other_sizes(
    reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = write_model(
        tmp_path / "encoder", family="mpnet", hidden_size=16, num_hidden_layers=2, intermediate_size=32
    )
    config, teacher = dataclasses.replace(tb.load_hf(encoder)[0], id2label=("bad", "good")), tmp_path / "teacher"
    params = random_params(HEADS["sequence"].model(config))
    tb.save_hf(teacher, config, params, tb.load_tokenizer(encoder, config))
    search_little(monkeypatch, "1x16", 4)
    lines: list[str] = []
    plan = searches.prepare(asked(teacher, reviews, keep=0.9), tmp_path / "out", say=lines.append)
    assert {candidate.name for candidate in plan.candidates} == {"1x16", "teacher"}
    assert "note: pruned-0.5 is left out: prune removes other heads in each layer, but mpnet" in "\n".join(lines)


def test_the_classes_are_the_teachers(teacher: Path, tmp_path: Path) -> None:
    """A training file may lack one."""
    (tmp_path / "train.csv").write_text("text,label\nfine,good\nlovely,good\n")
    (tmp_path / "dev.csv").write_text("text,label\nfine,good\nawful,bad\n")
    source = tb.DataSource(train=str(tmp_path / "train.csv"), dev=str(tmp_path / "dev.csv"))
    described(str(teacher), "classification", source, Aim(keep=0.9), 32, None, 0)
    (tmp_path / "dev.csv").write_text("text,label\nfine,good\nawful,unheard of\n")
    with pytest.raises(tb.InputError, match=f"unknown label 'unheard of'; {teacher} has 'bad', 'good'"):
        described(str(teacher), "classification", source, Aim(keep=0.9), 32, None, 0)


@pytest.mark.parametrize(
    ("max_length", "seed", "message"),
    [
        (4, 0, "max_length is 4; it must be at least 8"),
        (9999, 0, "positions, fewer than max_length 9999"),
        (16, -1, "seed is -1"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_measured(
    max_length: int, seed: int, message: str, teacher: Path, reviews: Path
) -> None:
    source = tb.DataSource(data=str(reviews))
    with pytest.raises(tb.InputError, match=message):
        described(str(teacher), "classification", source, Aim(keep=0.9), 32, max_length, seed)


def test_a_dev_set_of_one_class_is_refused(teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\nfine,good\nawful,bad\n")
    (tmp_path / "dev.csv").write_text("text,label\nfine,good\nlovely,good\n")
    source = tb.DataSource(train=str(tmp_path / "train.csv"), dev=str(tmp_path / "dev.csv"))
    with pytest.raises(tb.InputError, match="every row of the dev set has the same label"):
        described(str(teacher), "classification", source, Aim(keep=0.9), 32, None, 0)


@pytest.mark.long
def test_a_cut_teacher_is_not_cut_again_after_a_stop(
    teacher: Path, reviews: Path, few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise Stopped("stopped", 15)

    lines: list[str] = []
    plan = asked(teacher, reviews, max_mb=100.0)
    with monkeypatch.context() as patch:
        patch.setattr(searches, "_write", stop)  # when the first candidate is timed: nothing is cut yet
        with pytest.raises(Stopped):
            searches.prepare(plan, tmp_path / "out", say=lines.append)
    with monkeypatch.context() as patch:
        patch.setattr(searches, "load_hf", lambda path: stop() if "starts" in str(path) else tb.load_hf(path))
        with pytest.raises(Stopped):
            searches.prepare(plan, tmp_path / "out", resume=True, say=lines.append)
    assert lines == ["pruned-0.5: cutting the teacher"]
    resumed = searches.prepare(plan, tmp_path / "out", resume=True, say=lines.append)
    assert {candidate.name for candidate in resumed.candidates} == {"2x32", "pruned-0.5", "teacher"}
    assert lines[:1] == [line for line in lines if "cutting" in line]


@pytest.mark.long
def test_an_aim_that_nothing_reaches_says_how_near(
    teacher: Path, reviews: Path, few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    data = ["--teacher", teacher, "--task", "classification", "--data", reviews]
    code = tinybert(monkeypatch, "shrink", *data, "--max-mb", "0.0001", "--out", tmp_path / "small")
    assert code == 2
    captured = capsys.readouterr()
    assert "cutting the teacher" not in captured.out  # whose word table alone is larger
    last = captured.err.splitlines()[-1]  # after progress bars
    assert last.startswith("tinybert: error: no candidate is within the aim (at most 0.0001 MB): the nearest is ")
    assert [*(tmp_path / "small").iterdir()] == []  # so that the next command may take the directory
    assert tinybert(monkeypatch, "shrink", *data, "--keep", "140%", "--out", tmp_path / "high") == 1
    printed = capsys.readouterr().out
    assert "pruned-0.5: cutting the teacher\n" in printed
    assert "no candidate meets the aim (keep 140.0% of the teacher's score): " in printed
    assert not (tmp_path / "high" / "export").exists()


def test_a_candidate_that_diverges_ends_and_is_not_tried_again(
    teacher: Path, reviews: Path, few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = searches.prepare(asked(teacher, reviews, keep=0.1), tmp_path / "out")

    def diverging(*_: Any, **__: Any) -> None:
        raise Diverged("the loss is nan")

    monkeypatch.setattr(searches, "run", diverging)
    lines: list[str] = []
    ended = searches.search(plan, tmp_path / "out", lines.append)
    assert [outcome.candidate.name for outcome in ended.outcomes] == ["teacher"]
    assert [line for line in lines if "ends here: the loss is nan" in line]
    assert ended.pick is not None
    assert not [line for line in reasons(ended, tmp_path / "out") if "pick.py" in line]  # nothing was trained
    monkeypatch.setattr(searches, "run", None)
    assert searches.search(plan, tmp_path / "out", lines.append).outcomes == ended.outcomes


def test_the_names_in_a_file_name_are_no_classes() -> None:
    experiment = tb.Experiment("sst2", tb.DataSource(data="Reviews(1)"), "bert", (tb.Stage("supervised"),))
    assert searches._classes(experiment) == {"Experiment", "DataSource", "Stage", "Supervised"}


@pytest.mark.long
def test_a_failure_ends_the_search_and_not_a_candidate(
    teacher: Path, reviews: Path, few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = searches.prepare(asked(teacher, reviews, keep=0.1), tmp_path / "out")

    def failing(*_: Any, **__: Any) -> None:
        raise tb.InputError("no space left on device")

    monkeypatch.setattr(searches, "run", failing)
    with pytest.raises(tb.InputError, match="no space left"):
        searches.search(plan, tmp_path / "out", print)


def test_a_search_goes_on_with_the_rows_it_began_with(teacher: Path, reviews: Path, tmp_path: Path) -> None:
    plan = asked(teacher, reviews, keep=0.9)
    plans.save(plan, tmp_path / "plan.json")
    assert plans.load(tmp_path / "plan.json", plan) == plan
    changed = dataclasses.replace(plan, fingerprints=plan.fingerprints | {"train": "other"})
    with pytest.raises(tb.InputError, match="the teacher or the rows changed since"):
        plans.load(tmp_path / "plan.json", changed)


def test_a_search_reads_the_texts_as_its_teacher_does(directory: Path, tmp_path: Path) -> None:
    tokenizer_config = directory / "tokenizer_config.json"
    described_tokenizer = json.loads(tokenizer_config.read_text())
    tokenizer_config.write_text(json.dumps(described_tokenizer | {"text_template": ["{title}: {body}"]}))
    rows = "title\tbody\tlabel\n" + "".join(
        f"cold {word}\tit broke {word}\t{word}\n" for word in ("positive", "negative") * 5
    )
    for split in ("train", "dev"):
        (tmp_path / f"{split}.tsv").write_text(rows)
    source = tb.DataSource(data=str(tmp_path))
    plan = described(str(directory), "classification", source, Aim(keep=0.9), 32, None, 0)
    assert plan.source.text_template == ("{title}: {body}",)


def test_rows_without_labels_are_no_part_of_the_dev_set(
    teacher: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "texts.txt").write_text("good\nbad\n")
    source = tb.DataSource(data=str(reviews), unlabelled=(str(tmp_path / "texts.txt"),))
    plan = described(str(teacher), "classification", source, Aim(keep=0.9), 32, None, 0)
    assert searches._score(plan, str(teacher)) > 0.9


@pytest.mark.parametrize(
    ("aim", "names"),
    [
        ({"keep": 0.9}, ["pruned-0.5", "pruned-0.25"]),
        ({"max_ms": 6.0}, ["pruned-0.5", "pruned-0.25"]),
        ({"max_ms": 4.0}, ["pruned-0.25"]),  # a half takes at least 5 ms
        ({"max_ms": 2.0}, []),
        ({"max_mb": 0.0003}, []),  # the word table takes 0.0004
        ({"max_mb": 0.0005}, ["pruned-0.5", "pruned-0.25"]),
    ],
)
def test_the_teacher_is_cut_only_where_that_may_meet_the_aim(aim: dict[str, float], names: list[str]) -> None:
    params = {"encoder": {"embeddings": {"word_embeddings": {"embedding": np.zeros((100, 4))}}}}
    plan = asked_for(Aim(**aim), tb.DataSource(data="reviews"))
    assert [*methods(searches._largest_share(plan, params, lambda: 10.0))] == names
    texts = tb.DataSource(unlabelled=("texts.txt",), dev="dev.tsv")
    assert not methods(searches._largest_share(asked_for(Aim(**aim), texts), params, lambda: 10.0))


def asked_for(aim: Aim, source: tb.DataSource) -> Plan:
    return Plan(str(TINY), "classification", source, aim, (), (), 32, 16, 0, None, {})


@pytest.mark.parametrize(
    ("task", "objective"), [("classification", "prediction"), ("embedding", "embedding"), ("ranking", "ranking")]
)
def test_a_candidate_learns_layers_and_then_what_the_task_distils_by(task: str, objective: str) -> None:
    plan = dataclasses.replace(asked_for(Aim(keep=0.9), tb.DataSource(train="t", dev="d")), task=task, steps=(8,))
    of_size, of_teacher = (
        [stage.objective.name for stage in plan.experiment(Candidate("name", model, 1.0, 1.0, 1.0), 0).stages]
        for model in ("2x16", "starts/pruned-0.5")
    )
    assert of_size == ["transformer", objective]
    assert of_teacher == [objective]


def test_the_candidates_are_parts_of_the_teacher() -> None:
    base = BertConfig(vocab_size=99)  # 12 layers, 768 wide, 12 heads
    assert sizes(base) == ["12x384", "6x768", "6x384", "3x768", "3x384"]
    narrow = BertConfig(
        vocab_size=99, hidden_size=36, num_attention_heads=12, num_hidden_layers=2, intermediate_size=8
    )
    assert sizes(narrow) == []  # no half of its width that 12 heads divide, and no half of its layers


def test_a_budget_becomes_steps() -> None:
    sizes = (("2x16", 0.5), ("2x8", 1.5), ("pruned-0.5", 2.0), ("teacher", 0.0))
    candidates = tuple(Candidate(name, name, 1.0, 1.0, seconds) for name, seconds in sizes)
    plan = dataclasses.replace(asked_for(Aim(keep=0.9), tb.DataSource(train="t", dev="d")), candidates=candidates)
    # with 100 steps of layers and 50 of outputs, three candidates take 75 + 225 + 100 s: what is pruned learns outputs
    # alone. Then one of them is left, with twice and four times the steps
    usual = 400 * (1 + 2 / 3 + 4 / 3)
    assert dataclasses.replace(plan, steps=(100, 200, 400)).seconds == pytest.approx(usual)
    assert steps_within(plan, 3 * usual + 1) == (300, 600, 1200)
    with pytest.raises(tb.InputError, match="--budget is 2 minutes, and the candidates need about 4: give more time"):
        steps_within(plan, 120.0)


@pytest.mark.parametrize("text", ["2", "h", "-1h", "two hours", "infh"])
def test_a_time_is_refused_by_its_form(text: str) -> None:
    with pytest.raises(tb.InputError, match=f"--budget {text}: give a time"):
        parse_time("--budget", text)
