"""Data by a name of the Hub: without a network that is said in seconds, in one line, and nothing is written."""

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from lit_merge.cli.main import main
from lit_merge.data import datasets_tables

NAME = "hf://nobody/nothing"


class Failing(BaseHTTPRequestHandler):
    """What a proxy answers that does not reach the Hub."""

    def do_GET(self) -> None:
        self.send_error(503)

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def endpoint(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Hub that is closed, silent, or behind a proxy that fails; or off by HF_HUB_OFFLINE."""
    kind = request.param
    server = HTTPServer(("127.0.0.1", 0), Failing)
    silent = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = {"failing": server.server_port, "silent": silent.getsockname()[1]}.get(kind, 9)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", kind == "offline")
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(datasets_tables, "PATIENCE", 0.5)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    huggingface_hub.close_session()
    yield
    huggingface_hub.close_session()
    server.shutdown()
    server.server_close()
    silent.close()


@pytest.mark.parametrize("endpoint", ["offline", "closed", "silent", "failing"], indirect=True)
@pytest.mark.usefixtures("endpoint")
@pytest.mark.parametrize("kind", ["texts", "images"])
def test_it_does_not_hang(
    kind: str, texts: Any, tiny: Any, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "images":
        model = ["--model.experts.alpha", tiny.experts["alpha"], "--model.network", "OpenClipImageEncoder"]
        model += ["--model.network.config", tiny.network, "--model.network.heads", tiny.heads]
        model += ["--model.base", tiny.base]
        data = ["--data", "HubImages", "--data.paths.alpha", NAME]
    else:
        model = ["--model.experts.ham", texts.folder("bert", "ham"), "--model.network", "HuggingFaceTextEncoder"]
        model += ["--model.network.config", texts.folder("bert"), "--model.base", texts.folder("bert")]
        data = ["--data", "TextFiles", "--data.adapt.ham", NAME, "--data.tokenizer", texts.folder("bert")]
    capsys.readouterr()
    started = time.process_time(), time.monotonic()
    options = ["--model.method", "TaskArithmetic", "--trainer.accelerator", "cpu", "--trainer.max_steps", "1"]
    assert main(["fit", *model, *data, *options, "--run", f"{tmp_path}/run"]) == 2
    # A machine with much to do takes longer for what it computes, but not to wait.
    assert time.monotonic() - started[1] < 15 + 10 * (time.process_time() - started[0])
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith(f"lit_merge: error: {NAME}")
    offline = "offline" in request.node.callspec.id
    assert ("cannot be loaded" if offline else "the Hub cannot be reached") in line
    assert not list(tmp_path.iterdir())
