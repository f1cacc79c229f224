"""hf://…: what the cache has, what a hub serves, and what is said without a network."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from lit_merge import CART, MergeError, TaskBank, build_bank
from lit_merge.checkpoints import hub, open_checkpoint
from lit_merge.checkpoints.locations import resolve

SHA = "0" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def keep(cache: Path, revision: str = "main") -> Path:
    """A snapshot of org/name in the cache, as huggingface_hub lays it out."""
    repository = cache / "models--org--name"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / revision).write_text(SHA)
    snapshot = repository / "snapshots" / SHA
    snapshot.mkdir(parents=True, exist_ok=True)
    return snapshot


def refused(location: str, *said: str) -> None:
    with pytest.raises(MergeError) as caught:
        open_checkpoint(location)
    assert "\n" not in str(caught.value)
    for text in (location, *said):
        assert text in str(caught.value)


def test_from_the_cache(cache: Path) -> None:
    snapshot = keep(cache)
    save_file({"w": torch.ones(2)}, snapshot / "model.safetensors")
    assert open_checkpoint("hf://org/name").read("w").tolist() == [1, 1]
    assert open_checkpoint(f"hf://org/name@{SHA}").shapes == {"w": (2,)}
    (snapshot / "sub").mkdir()
    save_file({"v": torch.ones(3)}, snapshot / "sub" / "tower.safetensors")
    assert resolve("hf://org/name/sub/tower.safetensors") == snapshot / "sub" / "tower.safetensors"
    assert open_checkpoint("hf://org/name/sub/tower.safetensors").shapes == {"v": (3,)}
    torch.save({"u": torch.ones(1)}, snapshot / "sub" / "pytorch_model.bin")
    assert open_checkpoint("hf://org/name/sub").shapes == {"u": (1,)}
    refused("hf://org/name@other", "is not in the cache")


def test_a_bank_from_the_cache(cache: Path) -> None:
    experts = {task: {"blocks.0.mlp.w": torch.randn(6, 5)} for task in ("a", "b", "c")}
    bank = build_bank(experts, method=CART(rank_ratio=0.5))
    bank.save(keep(cache), overwrite=True)
    found = TaskBank.load("hf://org/name").expert("b")
    assert torch.equal(found["blocks.0.mlp.w"], bank.expert("b")["blocks.0.mlp.w"])


def test_offline(cache: Path) -> None:
    started = time.monotonic()
    refused("hf://org/absent", "not in the cache", "HF_HUB_OFFLINE is set", "give a folder on this machine")
    assert time.monotonic() - started < 5


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and never answers."""
    server = socket.create_server(("127.0.0.1", 0))
    taken: list[socket.socket] = []

    def take() -> None:
        with suppress(OSError):  # nobody has come
            taken.append(server.accept()[0])

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}"
    for connection in taken:
        connection.close()
    with suppress(OSError):
        server.shutdown(socket.SHUT_RDWR)  # it waits no longer
    thread.join()
    server.close()


@pytest.mark.parametrize("kind", ["closed", "silent"])
def test_without_a_network_it_does_not_hang(
    kind: str, silent: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", silent if kind == "silent" else "http://127.0.0.1:9")
    monkeypatch.setattr(hub, "TIMEOUT", 0.5)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    huggingface_hub.close_session()
    started = time.monotonic()
    refused("hf://org/absent", "not in the cache", "no connection", "connect to the network")
    assert time.monotonic() - started < 5
    huggingface_hub.close_session()


@pytest.mark.parametrize(
    "location", ["hf://", "hf://name", "hf://org/name@", "hf://org/../x", "hf://org/name/../../x", "hf://a b/c"]
)
def test_names_that_are_none(location: str, cache: Path) -> None:
    refused(location, "expected hf://org/name")


class Hub:
    """A hub of one repository, in place of the network."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.downloaded = folder, list[str]()
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)

    def model_info(self, repo: str, revision: str | None, timeout: float) -> Any:
        assert (repo, timeout) == ("org/name", hub.TIMEOUT)
        names = sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])

    def download(self, repo: str, revision: str | None, etag_timeout: float, allow_patterns: list[str]) -> str:
        assert (repo, etag_timeout) == ("org/name", hub.TIMEOUT)
        self.downloaded += allow_patterns
        return str(self.folder)


def test_only_weights_and_configuration_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "repository"
    (folder / "onnx").mkdir(parents=True)
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    for name, shard in shards.items():
        save_file({name: torch.ones(2)}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    for other in ("config.json", "tokenizer.json", "README.md", "optimizer.pt", "pytorch_model.bin", "onnx/model.json"):
        (folder / other).write_text("{}")
    served = Hub(folder, monkeypatch)
    assert set(open_checkpoint("hf://org/name").shapes) == {"a", "b"}
    expected = {"config.json", "tokenizer.json", "model.safetensors.index.json", *shards.values()}
    assert set(served.downloaded) == expected
    served.downloaded.clear()
    assert set(open_checkpoint(f"hf://org/name/{shards['a']}").shapes) == {"a"}
    assert served.downloaded == [shards["a"]]
    refused("hf://org/name/onnx", "holds no weights under a name that is known", "it has")
    (folder / shards["b"]).unlink()
    with pytest.raises(MergeError, match=f"names {shards['b']}, which is missing"):
        open_checkpoint("hf://org/name")


def test_what_the_hub_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    tmp_path.joinpath("r").mkdir()
    served = Hub(tmp_path / "r", monkeypatch)
    for kind, said in (
        (GatedRepoError, "access must be asked for"),
        (RepositoryNotFoundError, "no such model on the hub"),
        (RevisionNotFoundError, "no revision v2"),
    ):
        error = kind.__new__(kind)

        def fail(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(served, "model_info", fail)
        refused("hf://org/name@v2", said)


def test_in_a_process_that_has_imported_nothing_yet() -> None:
    call = "from lit_merge.checkpoints.hub import fetch; fetch('hf://org/absent')"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": "nowhere"}
    found = subprocess.run([sys.executable, "-c", call], env=environment, capture_output=True, text=True, check=False)
    assert "MergeError: hf://org/absent is not in the cache" in found.stderr.splitlines()[-1]


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused("hf://org/name", "needs huggingface_hub: pip install 'lit_merge[hf]'")
