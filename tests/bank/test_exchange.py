"""Banks to and from the hub: huggingface_hub's own client, and a server on this machine that keeps what it is sent."""

import base64
import hashlib
import json
import shlex
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from lit_merge import CART, MergeError, TaskBank, build_bank, compress_bank, pull_bank, push_bank
from lit_merge.cli.main import main


class Hub(ThreadingHTTPServer):
    """One repository, org/name, as far as commits and downloads need it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.files: dict[str, bytes] | None = None
        self.messages: list[str] = []
        self.private = False
        self.refuses = 0

    @property
    def sha(self) -> str:
        return hashlib.sha1(repr(sorted((self.files or {}).items())).encode()).hexdigest()

    def about(self) -> dict[str, Any]:
        files = [{"rfilename": name} for name in sorted(self.files or {})]
        return {"id": "org/name", "sha": self.sha, "private": self.private, "siblings": files, "tags": []}

    def commit(self, lines: list[dict[str, Any]]) -> None:
        assert self.files is not None
        for line in lines:
            if line["key"] == "header":
                self.messages.append(line["value"]["summary"])
            if line["key"] == "file":
                self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        hub = self.server
        if hub.files is None:
            return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        if "/resolve/" not in self.path:
            files = [{"type": "file", "path": name, "oid": "0", "size": len(x)} for name, x in hub.files.items()]
            return self.answer(files if "/tree/" in self.path else hub.about())
        content = hub.files[self.path.split("?")[0].rpartition("/")[2]]
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        return self.answer(content, ETag=etag, X_Repo_Commit=hub.sha)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        hub = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if hub.refuses:
            return self.answer({"error": "You don't have the rights"}, hub.refuses)
        if self.path == "/api/repos/create":
            if hub.files is not None:
                return self.answer({"error": "exists", "url": f"{constants.ENDPOINT}/org/name"}, 409)
            asked = json.loads(body)
            hub.files, hub.private = (
                {".gitattributes": b""},
                asked.get("visibility", asked.get("private")) in ("private", True),
            )
            return self.answer({"url": f"{constants.ENDPOINT}/org/name"})
        if "/preupload/" in self.path:
            files = [{"path": one["path"], "uploadMode": "regular"} for one in json.loads(body)["files"]]
            return self.answer({"files": [one | {"shouldIgnore": False} for one in files]})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        assert "/commit/" in self.path
        hub.commit([json.loads(line) for line in body.splitlines()])
        return self.answer({"commitUrl": f"{constants.ENDPOINT}/org/name/commit/1", "commitOid": hub.sha})


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    huggingface_hub.close_session()
    yield server
    huggingface_hub.close_session()
    server.shutdown()
    server.server_close()


@pytest.fixture
def saved(tiny: Any, tmp_path: Path) -> Path:
    build_bank(tiny.experts, tiny.base, method=CART(0.5)).save(tmp_path / "bank")
    return tmp_path / "bank"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_there_and_back(served: Hub, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    push = ["bank", "push", "--bank", str(saved), "--to", "hf://org/name"]
    assert main([*push, "--dry-run"]) == 0
    assert served.files is None
    assert "Would be sent to hf://org/name: bank.json (" in capsys.readouterr().out
    assert main([*push, "--private", "--message", "the first"]) == 0
    assert f"Sent to hf://org/name: {constants.ENDPOINT}/org/name/commit/1" in capsys.readouterr().out
    assert served.files == {".gitattributes": b""} | contents(saved)
    assert (served.private, served.messages) == (True, ["the first"])
    assert main(["bank", "pull", "hf://org/name", "--output", str(tmp_path / "copy")]) == 0
    assert contents(tmp_path / "copy") == contents(saved)
    found = TaskBank.load("hf://org/name")
    assert found.fingerprint == TaskBank.load(saved).fingerprint
    # It replaces a bank only where that is asked for, and other files never.
    with pytest.raises(MergeError, match=r"hf://org/name holds bank.json, bank.safetensors already: pass --overwrite"):
        push_bank(saved, "hf://org/name")
    TaskBank.load(saved).truncate(0.25).save(tmp_path / "small")
    push_bank(tmp_path / "small", "hf://org/name", overwrite=True)
    assert served.files == {".gitattributes": b""} | contents(tmp_path / "small")
    with pytest.raises(MergeError, match="copy exists: pass --overwrite"):
        pull_bank("hf://org/name", tmp_path / "copy")
    pull_bank("hf://org/name", tmp_path / "copy", overwrite=True)
    assert TaskBank.load(tmp_path / "copy").ranks == TaskBank.load(tmp_path / "small").ranks
    served.files["model.safetensors"] = b"of another"
    with pytest.raises(MergeError, match=r"holds other files \(model\.safetensors\): send to another repository"):
        push_bank(saved, "hf://org/name", overwrite=True)
    assert len(served.messages) == 2


def test_a_card_that_was_there_before_stays(served: Hub, saved: Path) -> None:
    served.files = {".gitattributes": b"", "README.md": b"mine"}
    push_bank(saved, "hf://org/name")
    assert served.files == {".gitattributes": b""} | contents(saved) | {"README.md": b"mine"}
    push_bank(saved, "hf://org/name", overwrite=True)
    assert served.files == {".gitattributes": b""} | contents(saved)


def test_the_page(served: Hub, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "task_banks.md").read_text(encoding="utf-8")
    section = page.partition("## Given to others")[2].partition("\n## ")[0]
    monkeypatch.chdir(saved.rename(tmp_path / "small").parent)
    commands = [line for line in section.splitlines() if line.startswith("lit-merge bank")]
    assert len(commands) == 3
    assert [main(shlex.split(line)[1:]) for line in commands] == [0, 0, 0]
    assert contents(tmp_path / "copy") == contents(tmp_path / "small")


@pytest.mark.parametrize("status", [401, 403, 500])
def test_what_the_hub_refuses(status: int, served: Hub, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served.refuses = status
    with pytest.raises(MergeError, match="hf://org/name: nothing was sent") as caught:
        push_bank(saved, "hf://org/name")
    assert ("hf auth login" in str(caught.value)) == (status != 500)
    assert "\n" not in str(caught.value)


def test_a_damaged_bank_goes_nowhere(served: Hub, saved: Path, tmp_path: Path) -> None:
    push_bank(saved, "hf://org/name")
    whole = (saved / "bank.safetensors").read_bytes()
    broken = whole[:-40] + bytes(byte ^ 1 for byte in whole[-40:])
    (saved / "bank.safetensors").write_bytes(broken)
    with pytest.raises(MergeError, match=r"is not as it was saved|not as they were saved"):
        push_bank(saved, "hf://org/name", overwrite=True)
    assert served.files is not None
    assert served.files["bank.safetensors"] == whole
    served.files["bank.safetensors"] = broken
    with pytest.raises(MergeError, match=r"is not as it was saved|not as they were saved"):
        pull_bank("hf://org/name", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_base_on_this_machine_only(tiny: Any, saved: Path, tmp_path: Path) -> None:
    compress_bank(TaskBank.load(saved), tmp_path / "small", budget="2x", origin="base", base=tiny.base)
    with pytest.raises(MergeError, match="on this machine only"):
        push_bank(tmp_path / "small", "hf://org/name")


def test_a_folder_that_is_no_bank(served: Hub, tiny: Any, tmp_path: Path) -> None:
    for call in (lambda: pull_bank(str(tiny.root), tmp_path / "copy"), lambda: push_bank(tiny.root, "hf://org/name")):
        with pytest.raises(MergeError, match=f"{tiny.root} is no task bank"):
            call()
    assert served.files is None
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("location", ["org/name", "hf://org/name@v2", "hf://org/name/inside", "hf://name"])
def test_places_that_are_none(location: str, saved: Path) -> None:
    with pytest.raises(MergeError, match=f"{location}: expected hf://org/name, a repository to send to"):
        push_bank(saved, location)


def test_offline(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MergeError, match="HF_HUB_OFFLINE is set, so nothing is sent"):
        push_bank(saved, "hf://org/name")
