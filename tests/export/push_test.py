"""`tinybert push` sends a model directory to a hub, here a server in this process, or says in a line why it cannot."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from in_process import assert_refused, tinybert

import tinybert_jax as tb

TOKEN = "hf_of_the_owner"


class Hub(ThreadingHTTPServer):
    """A hub with the repositories of `owner`, and of others: as much of its protocol as an upload asks for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.private: dict[str, bool] = {"others/theirs": False}
        self.files: dict[str, dict[str, bytes]] = {}
        self.commits: list[str] = []
        self.requests: list[str] = []


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        name = self.path.removeprefix("/api/models/")
        self.server.requests.append(f"GET {self.path}")
        if name not in self.server.private:
            return self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        return self._answer(200, {"id": name, "private": self.server.private[name], "sha": "0" * 40})

    def do_POST(self) -> None:
        self.server.requests.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid username or password."})
        if self.path == "/api/validate-yaml":  # of older clients
            return self._answer(200, {"errors": [], "warnings": []})
        if self.path == "/api/repos/create":
            return self._create(json.loads(body))
        owner, name, action, revision = self.path.removeprefix("/api/models/").split("/")
        assert revision == "main"
        if owner != "owner":
            return self._answer(403, {"error": "You don't have the rights to write here"})
        return self._preupload(json.loads(body)) if action == "preupload" else self._commit(f"{owner}/{name}", body)

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != "owner":
            return self._answer(403, {"error": f"You don't have the rights to create a model under {name}"})
        if name in self.server.private:
            url = f"{self.server.endpoint}/{name}"
            return self._answer(409, {"error": "You already created this model repo", "url": url})
        self.server.private[name] = asked.get("visibility") == "private" or asked.get("private") is True
        return self._answer(200, {"url": f"{self.server.endpoint}/{name}"})

    def _preupload(self, asked: dict[str, Any]) -> None:
        paths = [file["path"] for file in asked["files"]]
        modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
        self._answer(200, {"files": modes})

    def _commit(self, name: str, body: bytes) -> None:
        header, *changes = map(json.loads, body.splitlines())
        self.server.commits.append(header["value"]["summary"])
        for change in changes:
            assert (change["key"], change["value"]["encoding"]) == ("file", "base64")
            content = base64.b64decode(change["value"]["content"])
            self.server.files.setdefault(name, {})[change["value"]["path"]] = content
        oid = "1" * 40
        self._answer(200, {"commitUrl": f"{self.server.endpoint}/{name}/commit/{oid}", "commitOid": oid})

    def _answer(self, status: int, content: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for field, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(field, value)
        data = json.dumps(content).encode()
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Print nothing."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process, and those it starts, ask in place of the real one, as its owner."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever)
        thread.start()
        variables = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN, "NO_PROXY": "127.0.0.1"}
        for name, value in {**variables, "HF_HOME": str(tmp_path / "hf")}.items():
            monkeypatch.setenv(name, value)
        # what this process has read already
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        yield hub
        hub.shutdown()
        thread.join()


@pytest.fixture
def model(directory: Path) -> Path:
    (directory / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def test_the_command_makes_the_repository_and_sends_every_file(hub: Hub, model: Path) -> None:
    command = [sys.executable, "-m", "tinybert_jax.cli", "push", str(model), "--to", "owner/tiny"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert (done.returncode, done.stdout) == (0, f"uploaded to {hub.endpoint}/owner/tiny\n"), done.stderr
    assert hub.private["owner/tiny"] is False
    assert hub.files == {"owner/tiny": contents(model)}
    assert hub.commits == ["Upload a model of tinybert_jax"]


def test_the_page_of_a_model_stays_at_home(hub: Hub, model: Path) -> None:
    sent = contents(model)
    for name in ("report.html", "report.md"):
        (model / name).write_text("the texts of rows")
    tb.push(model, "owner/tiny")
    assert hub.files == {"owner/tiny": sent}


def test_a_second_upload_replaces_files_of_the_same_names(hub: Hub, model: Path) -> None:
    hub.private["owner/tiny"] = False
    hub.files["owner/tiny"] = {"README.md": b"older", "LICENSE": b"stays"}
    assert tb.push(model, "owner/tiny") == f"{hub.endpoint}/owner/tiny"
    assert hub.files["owner/tiny"] == contents(model) | {"LICENSE": b"stays"}


def test_a_private_repository_is_asked_for_and_a_public_one_refused_for_it(
    hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert tinybert(monkeypatch, "push", model, "--to", "owner/mine", "--private") == 0
    assert hub.private["owner/mine"] is True
    assert hub.files.keys() == {"owner/mine"}
    hub.private["owner/open"] = False
    capsys.readouterr()
    code = tinybert(monkeypatch, "push", model, "--to", "owner/open", "--private")
    assert_refused(capsys, code, "owner/open: exists already, and is public: make it private there, or choose another")
    assert hub.files.keys() == {"owner/mine"}


def test_an_exported_model_is_uploaded_with_its_folders(hub: Hub, model: Path) -> None:
    (model / "onnx").mkdir()
    (model / "model.safetensors").rename(model / "onnx/model.onnx")
    tb.push(model, "owner/onnx")
    assert "onnx/model.onnx" in hub.files["owner/onnx"]


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("others/new", "others/new: your token may not write there: take a token that may write, or a repository of"),
        ("others/theirs", "others/theirs: your token may not write there"),
    ],
)
def test_repositories_of_others_are_refused(
    to: str, message: str, hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    code = tinybert(monkeypatch, "push", model, "--to", to)
    assert_refused(capsys, code, message)
    assert not hub.files


@pytest.mark.parametrize("to", ["tiny", "owner/", "https://huggingface.co/owner/tiny", "a/b/c", "owner/tiny@main", ""])
def test_what_is_no_name_of_a_repository_is_refused_before_anything_is_asked(
    to: str, hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    code = tinybert(monkeypatch, "push", model, f"--to={to}")
    assert_refused(capsys, code, f"{to!r} is no name of a repository: give owner/name")
    assert not hub.requests


def test_what_holds_no_model_is_refused_before_anything_is_asked(
    hub: Hub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    model = model.rename(run / "student")
    for directory, message in (
        (tmp_path / "none", "none: no such directory"),
        (model / "config.json", "config.json: no such directory"),
        (run, "no, a run's: its model is "),
    ):
        assert_refused(capsys, tinybert(monkeypatch, "push", directory, "--to", "owner/tiny"), message)
    (model / "model.safetensors").unlink()
    code = tinybert(monkeypatch, "push", model, "--to", "owner/tiny")
    assert_refused(capsys, code, "student: holds no weights, and no exported model: there is nothing to upload")
    assert not hub.requests


def test_a_hub_that_is_not_reached_is_told_in_a_line(
    hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    command = ("push", model, "--to", "owner/tiny")
    with monkeypatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_wrong")
        assert_refused(capsys, tinybert(patch, *command), "owner/tiny: the hub does not take your token: log in with")
    with monkeypatch.context() as patch:
        patch.delenv("HF_TOKEN")
        assert_refused(capsys, tinybert(patch, *command), "there is no token for http://127.0.0.1")
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert_refused(capsys, tinybert(patch, *command), "is set, so nothing can be uploaded: unset it")
    with monkeypatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        code = tinybert(patch, *command)
        assert_refused(capsys, code, "owner/tiny: could not be uploaded to http://127.0.0.1:9 (")
    assert not hub.files
