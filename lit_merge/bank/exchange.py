"""Banks to and from the Hugging Face hub."""

import shutil
from pathlib import Path
from typing import Any

from lit_merge.bank.files import BANK, open_bank_folder
from lit_merge.bank.model_card import model_card
from lit_merge.checkpoints import hub, replacing
from lit_merge.checkpoints.json_text import parse_json
from lit_merge.checkpoints.locations import resolve
from lit_merge.errors import MergeError

FILES = ("bank.json", "bank.safetensors", "README.md")


def push_bank(
    path: str | Path,
    location: str,
    *,
    base: str | Path | None = None,
    private: bool = False,
    overwrite: bool = False,
    message: str | None = None,
) -> str:
    """Sends a saved bank to a repository of the hub, which is made if it is not there. Every tensor is checked first.

    Args:
        path: folder of the bank.
        location: `hf://org/name`.
        base: where its base is, of a bank that is stored as a difference from one; see `TaskBank.load`.
        private: whether a repository that is made is private.
        overwrite: replace a bank that is there; the hub keeps it as an earlier revision.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        MergeError: no bank there, or a damaged one; a base on this machine only; other files in the repository; no
            access, no network.
    """
    files = check_bank(path, base)
    message = message or f"Task bank of {files[0].parent.name}, by lit_merge"
    return hub.send(files, location, kind=BANK, message=message, private=private, overwrite=overwrite)


def check_bank(path: str | Path, base: str | Path | None = None) -> list[Path]:
    """The files of a bank that others can open.

    Raises:
        MergeError: no bank there, a damaged one, or one whose base is named by a place on this machine.
    """
    folder = resolve(path)
    described: Any = _read(folder, base).get("base", {})
    location = str(described.get("location", hub.PREFIX))
    if not location.startswith(hub.PREFIX):
        raise MergeError(
            f"{path} is a difference from {location}, which is on this machine only: write it by `lit-merge export "
            "--origin base` from a base that is named hf://org/name, or with its own origin"
        )
    return [folder / name for name in FILES if (folder / name).is_file()]


def pull_bank(location: str, path: str | Path, *, base: str | Path | None = None, overwrite: bool = False) -> None:
    """Copies a bank, as `hf://org/name`, into a folder, byte by byte. Every tensor is checked first.

    Args:
        location: of the bank, on the hub or on this machine.
        path: of the folder.
        base: where its base is, of a bank that is stored as a difference from one; see `TaskBank.load`.
        overwrite: replace a bank that stands there.

    Raises:
        MergeError: no bank there, or a damaged one; a folder that stands there; no access, no network.
    """
    with replacing(path, overwrite, BANK) as folder:
        source = resolve(location)
        _read(source, base)
        folder.mkdir()
        for name in FILES[:2]:
            shutil.copyfile(source / name, folder / name)
        card = model_card(parse_json((folder / "bank.json").read_bytes()))
        (folder / "README.md").write_text(card, encoding="utf-8")


def _read(folder: Path, base: str | Path | None) -> dict[str, object]:
    """The description, once every tensor has been read and is as it was saved."""
    about, file = open_bank_folder(folder, base)
    for name in file.shapes:
        file.read(name)
    return about
