"""The code of README and the guides runs as it stands, their links lead somewhere, and no option is left out."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from pathlib import Path

import pytest

import tinybert_jax as tb
from tinybert_jax.cli.entry import COMMANDS
from tinybert_jax.cli.names import option_names

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def code(page: str, containing: str) -> str:
    """The one block of Python in a page that contains a text."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), flags=re.DOTALL)
    [block] = [block for block in blocks if containing in block]
    return block


@pytest.mark.long
def test_the_training_loop_runs_and_writes_a_student(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(teacher, "teacher")
    exec(code("docs/jax-api.md", "make_train_step"), {})
    config, _ = tb.load_hf("student")
    assert (config.num_hidden_layers, config.hidden_size, config.id2label) == (3, 192, ("bad", "good"))


def test_the_three_lines_that_use_a_student_run(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(teacher, "runs/tiny/student")
    exec(code("README.md", "load_predictor"), {})
    assert "Prediction(label=" in capsys.readouterr().out


def test_the_lines_with_losses_run(capsys: pytest.CaptureFixture) -> None:
    names: dict = {}
    exec(code("README.md", "attention_mse"), names)
    assert (float(names["loss"]), names["gradient"].shape) == (1.0, (8, 4, 16, 16))
    exec(code("docs/jax-api.md", "hidden_mse"), {})
    assert capsys.readouterr().out == "1.0\n"


@pytest.mark.long
def test_the_notebook_runs(teacher: Path, tmp_path: Path) -> None:
    cells = json.loads((ROOT / "docs/quickstart.ipynb").read_text("utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    [hub_id] = re.findall(r'^MODEL = "(.+?)"', sources[0], flags=re.MULTILINE)
    sources[0] = sources[0].replace(hub_id, str(teacher)).replace("tempfile.mkdtemp()", repr(str(tmp_path)))
    names: dict = {}
    for source in sources:
        exec(source.replace('"3x192"', '"3x16"'), names)
    assert names["sizes"]["student"] < names["sizes"]["teacher"]
    assert names["soft"].shape == (2,)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_in_the_guide(name: str) -> None:
    text = (ROOT / "docs/commands.md").read_text("utf-8")
    section = text.split(f"## tinybert {name}\n")[1].split("\n## ")[0]
    assert [option for option in option_names(COMMANDS[name]) if option not in section] == []


def test_no_help_names_an_empty_default() -> None:
    text = (ROOT / "docs/commands.md").read_text("utf-8")
    assert "(default: )" not in text
    assert "(default: None)" not in text


def test_every_loss_is_in_the_guide() -> None:
    rows = re.findall(r"^\| `(\w+)\(", (ROOT / "docs/jax-api.md").read_text("utf-8"), flags=re.MULTILINE)
    named = {name for name, x in vars(tb.losses).items() if callable(x) and x.__module__ == tb.losses.__name__}
    assert sorted(rows) == sorted(name for name in named if not name.startswith("_"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


def test_experiment_files_define_an_experiment() -> None:
    described = runpy.run_path(str(ROOT / "experiments" / "sst2.py"))["experiment"]
    assert isinstance(described, tb.Experiment)
