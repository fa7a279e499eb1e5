"""`tinybert compress` and `tinybert export`: what they print, and what they refuse."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from in_process import assert_refused, tinybert

import tinybert_jax as tb


@pytest.mark.long
def test_the_command_prints_the_chain_and_refuses_what_makes_no_sense(
    teacher: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    common = ["compress", "--model", teacher, "--task", "classification", "--data", reviews, "--max-length", 12]
    code = tinybert(monkeypatch, *common, "--out", tmp_path / "no")
    assert_refused(capsys, code, "nothing to do: give --prune SHARE")
    code = tinybert(monkeypatch, *common, "--out", tmp_path / "no", "--uniform")
    assert_refused(capsys, code, "--uniform is an option of --prune")
    code = tinybert(monkeypatch, *common, "--out", tmp_path / "no", "--vocabulary", reviews / "train.tsv")
    assert_refused(capsys, code, "give data, and after it files with a text a line")
    code = tinybert(monkeypatch, *common, "--out", reviews, "--prune", 0.5)
    assert_refused(capsys, code, "exists already; choose another --out")
    assert (
        tinybert(monkeypatch, *common, "--out", tmp_path / "out", "--prune", 0.5, "--uniform", "--vocabulary", "data")
        == 0
    )
    printed = capsys.readouterr().out
    assert "0.0% more tokens in the dev rows, 0 unknown" in printed
    assert "encoder's multiply-adds" in printed
    assert "| vocabulary |" in (tmp_path / "out/README.md").read_text()
    assert "| prune |" in (tmp_path / "out/README.md").read_text()
    predictor = tb.load_predictor(tmp_path / "out")
    assert predictor(["we bought lovely chips"])[0].label == "good"
    assert predictor.max_length == 12, "the length that was measured"
    assert f"written to {tmp_path / 'out/report.html'}" in printed
    page = (tmp_path / "out/report.md").read_text()
    assert "| compressed | " in page
    assert "| teacher | " in page
    assert "## Compression" in page


def test_a_part_of_the_layers_is_shared(
    teacher: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    code = tinybert(
        monkeypatch, "compress", "--model", teacher, "--task", "classification", "--data", reviews, "--out",
        tmp_path / "out", "--share", 2, "--share-part", "attention", "--no-report",
    )  # fmt: skip
    assert code == 0
    assert "M of the parameters are another layer's; smaller in ONNX" in capsys.readouterr().out
    layer = tb.load_hf(tmp_path / "out")[1]["encoder"]["encoder"]["layer"]
    query, up = layer["attention"]["self"]["query"]["kernel"], layer["intermediate"]["dense"]["kernel"]
    assert (query[0] == query[1]).all()
    assert not (up[0] == up[1]).all()


def test_single_weights_are_pruned_and_the_note_says_that_nothing_is_faster(
    teacher: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    common = ["compress", "--model", teacher, "--task", "classification", "--data", reviews, "--max-length", 16]
    common += ["--no-report", "--out", tmp_path / "out"]
    for alone in (("--pattern", "2:4"), ("--criterion", "wanda")):
        code = tinybert(monkeypatch, *common, *alone)
        assert_refused(capsys, code, "is an option of --sparse: give both, or leave it out")
    code = tinybert(monkeypatch, *common, "--share-part", "attention")
    assert_refused(capsys, code, "--share-part is an option of --share: give both, or leave it out")
    code = tinybert(monkeypatch, *common, "--sparse", 0.7, "--pattern", "2:4")
    assert_refused(capsys, code, "share is 0.7 and pattern '2:4': give one of the two")
    assert tinybert(monkeypatch, *common, "--sparse", 0.5, "--pattern", "2:4", "--criterion", "wanda") == 0
    note = "sparse: 50.0% of the weights of the encoder's dense layers are zero; smaller when packed, not faster"
    assert note in capsys.readouterr().out
    assert note in (tmp_path / "out/README.md").read_text()
    packing = ["compress", "--model", tmp_path / "out", *common[3:-1], tmp_path / "packed", "--pack"]
    assert tinybert(monkeypatch, *packing) == 0
    assert re.search(r"whole: packed: 0\.\d MB for 0\.\d", capsys.readouterr().out)
    plain, packed = (tb.load_hf(tmp_path / name) for name in ("out", "packed"))
    assert plain[0] == packed[0]
    jax.tree.map(np.testing.assert_array_equal, plain[1], packed[1])
    assert "`tinybert_jax` alone reads its packed file" in (tmp_path / "packed/README.md").read_text()


def test_rows_are_not_cut_to_nothing(teacher: Path, reviews: Path, tmp_path: Path) -> None:
    for length in (-3, 0, 7):
        with pytest.raises(tb.InputError, match=f"max_length is {length}; it must be at least 8"):
            tb.compress(str(teacher), "classification", tb.DataSource(data=str(reviews)), (), tmp_path / "out", length)


def test_options_of_distill_that_do_not_fit_are_refused(
    teacher: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    common = ["distill", "--teacher", teacher, "--student", teacher, "--task", "classification", "--data", reviews]
    common += ["--max-length", 16, "--stage", "prediction", "--prediction-steps", 2, "--out", tmp_path / "out"]
    assert_refused(capsys, tinybert(monkeypatch, *common, "--uniform"), "--uniform is an option of --prune")
    code = tinybert(monkeypatch, *common, "--prune", 0.4, "--one-by-one")
    assert_refused(capsys, code, "--one-by-one trains after each of several methods, and fewer are given")
    assert_refused(capsys, tinybert(monkeypatch, *common, "--prune", 2), "macs is 2.0; it must be between 0 and 1")
    code = tinybert(monkeypatch, *common, "--gradual", "l0")
    assert_refused(capsys, code, "--gradual is an option of --prune: give both, or leave it out")
    code = tinybert(monkeypatch, *common, "--prune", 0.4, "--uniform", "--gradual", "l0")
    assert_refused(capsys, code, "--gradual leaves layers of unlike sizes, and --uniform asks for like ones")
    code = tinybert(monkeypatch, *common, "--prune", 0.4, "--gradual", "fisher")
    assert_refused(capsys, code, "acts while its stage trains, in at least 10 steps, and this one has 2: train longer")


@pytest.mark.long
def test_distill_prunes_before_it_trains(
    teacher: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["distill", "--teacher", teacher, "--student", teacher, "--task", "classification", "--data", reviews]
    common += ["--max-length", 16, "--stage", "prediction", "--prediction-steps", 2, "--out", tmp_path / "out"]
    assert tinybert(monkeypatch, *common, "--prune", 0.4, "--uniform", "--population", 2) == 0
    config, _ = tb.load_hf(tmp_path / "out/member1/student")
    assert config.intermediate_size < tb.load_hf(teacher)[0].intermediate_size
    page = (tmp_path / "out/report.md").read_text()  # of all members
    assert "out member 0 (student) | " in page
    assert "out member 1 (student) | " in page
    assert "2 members: accuracy" in page


@pytest.mark.long
def test_a_pruned_model_is_exported(
    teacher: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    pytest.importorskip("onnxruntime")
    common = ["compress", "--model", teacher, "--task", "classification", "--data", reviews, "--max-length", 16]
    tinybert(monkeypatch, *common, "--no-report", "--out", tmp_path / "out", "--prune", 0.3)
    texts = tmp_path / "texts.txt"
    texts.write_text("we bought lovely chips\n\nwe bought awful chips\n")
    command = [
        "export",
        "--model",
        tmp_path / "out",
        "--to",
        "onnx",
        "onnx-int8",
        "--weight-bits",
        8,
        "--texts",
        texts,
    ]
    assert tinybert(monkeypatch, *command, "--out", tmp_path / "export") == 0
    printed = capsys.readouterr().out
    assert "same labels" in printed
    assert printed.count("100.0%") >= 1
    files = [tmp_path / "export/onnx" / name for name in ("model.onnx", "model_quantized.onnx")]
    assert files[0].stat().st_size > files[1].stat().st_size
    texts.write_text("\n")
    code = tinybert(monkeypatch, *command, "--out", tmp_path / "no")
    assert_refused(capsys, code, "holds no text: give a file with a text a line")
