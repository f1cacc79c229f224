"""Models of the Hugging Face hub, `hf://org/name`: their weights and configuration, in huggingface_hub's own cache."""

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from lit_merge.checkpoints.folders import SUFFIXES, choose_weights
from lit_merge.checkpoints.json_text import parse_json
from lit_merge.checkpoints.kinds import Kind
from lit_merge.console import listed
from lit_merge.errors import MergeError

PREFIX = "hf://"
_LOCATION = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^/]+))?(/(?P<inside>.+?))?/?")
# What lies next to weights and is small: configurations, tokenizers, chat templates.
_BESIDE = (".json", ".txt", ".model", ".jinja")
# Also where nothing was sent yet.
OF_EVERY_REPOSITORY = (".gitattributes", "README.md")
# Seconds until a hub that does not answer counts as out of reach.
TIMEOUT = 10.0


def fetch(location: str) -> Path:
    """The folder or file on this machine, downloaded where the cache has it not.

    Args:
        location: `hf://org/name`, `hf://org/name@revision`, and behind either a folder or a file of the repository.

    Raises:
        MergeError: no such repository, revision, folder or file; no access; no network, and not in the cache; no
            huggingface_hub.
    """
    match = _LOCATION.fullmatch(location)
    if match is None or ".." in location:
        raise MergeError(f"{location}: expected hf://org/name, hf://org/name@revision or hf://org/name/folder/or/file")
    huggingface_hub = _client(location)
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    repo, inside = match["repo"], match["inside"] or ""
    revision = None if match["revision"] is None else unquote(match["revision"])
    try:
        about = huggingface_hub.HfApi().model_info(repo, revision=revision, timeout=TIMEOUT)
        names = [file.rfilename for file in about.siblings or ()]
    except GatedRepoError as error:
        raise MergeError(
            f"{location}: access must be asked for on the hub; then log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise MergeError(f"{location}: the repository has no revision {revision}") from error
    except RepositoryNotFoundError as error:
        raise MergeError(f"{location}: no such model on the hub, or none that you may see: `hf auth login`") from error
    # It fails in as many ways as networks do, and not with the same classes in all versions.
    except Exception as error:
        return _cached(location, repo, revision, inside, error)
    return _download(location, repo, revision, inside, names)


def send(files: Sequence[Path], location: str, *, kind: Kind, message: str, private: bool, overwrite: bool) -> str:
    """Puts files into a repository for models, in one commit; where there is none of this name, it is made.

    Args:
        files: under their own names.
        location: `hf://org/name`.
        kind: what may be replaced there.
        message: of the commit.
        private: whether a repository that is made is private.
        overwrite: whether something of this kind is replaced; the hub keeps it as an earlier revision.

    Returns:
        The address of the commit.

    Raises:
        MergeError: no such name; other files there; no access, no network, no huggingface_hub.
    """
    match = _LOCATION.fullmatch(location)
    if match is None or match["revision"] or match["inside"]:
        raise MergeError(f"{location}: expected hf://org/name, a repository to send to")
    huggingface_hub, repo = _client(location), match["repo"]
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise MergeError(f"{location}: HF_HUB_OFFLINE is set, so nothing is sent")
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repo, private=private or None, exist_ok=True)
        names = api.list_repo_files(repo)
        there = [name for name in names if name not in OF_EVERY_REPOSITORY]
        if others := [name for name in there if not re.fullmatch(kind.files, name)]:
            raise MergeError(f"{location} holds other files ({listed(others)}): send to another repository")
        if there and not overwrite:
            raise MergeError(f"{location} holds {listed(there)} already: pass --overwrite; the hub keeps it, too")
        # A card that somebody has written before there was anything else stays.
        sent = [file for file in files if there or file.name not in names]
        added = [huggingface_hub.CommitOperationAdd(file.name, file) for file in sent]
        return str(api.create_commit(repo, added, commit_message=message).commit_url)
    except MergeError:
        raise
    # In as many ways as above.
    except Exception as error:
        refused = getattr(getattr(error, "response", None), "status_code", None) in (401, 403)
        reason = "it may not be written" if refused else " ".join(str(error).split()) or type(error).__name__
        hint = ": log in with `hf auth login`, with a token that may write" if refused else ""
        raise MergeError(f"{location}: nothing was sent: {reason}{hint}") from error


def _client(location: str) -> Any:
    """The module huggingface_hub.

    Raises:
        MergeError: it is not installed.
    """
    try:
        import huggingface_hub

        # They are attributes once they are imported.
        import huggingface_hub.constants
        import huggingface_hub.utils
    except ImportError as error:
        raise MergeError(f"{location} needs huggingface_hub: pip install 'lit_merge[hf]'") from error
    huggingface_hub.utils.logging.set_verbosity_error()
    return huggingface_hub


def _download(location: str, repo: str, revision: str | None, inside: str, names: Sequence[str]) -> Path:
    """One file, or of a folder the weights that transformers would take and what belongs to them."""
    from huggingface_hub import snapshot_download

    def snapshot(wanted: Iterable[str]) -> Path:
        try:
            allowed = [escape(name) for name in wanted]
            return Path(snapshot_download(repo, revision=revision, etag_timeout=TIMEOUT, allow_patterns=allowed))
        except Exception as error:
            raise MergeError(f"{location}: it could not be downloaded: {error}") from error

    folder = inside[: inside.rfind("/") + 1] if inside in names else f"{inside}/" if inside else ""
    here = [name for name in names if name.startswith(folder)]
    chosen = inside.removeprefix(folder) if inside in names else _weights([n.removeprefix(folder) for n in here])
    if chosen is None:
        others = sorted(name for name in names if name.endswith(SUFFIXES))
        hint = f"; it has {', '.join(others[:5])}: add one to the name" if others else ""
        raise MergeError(f"{location} holds no weights under a name that is known{hint}")
    companions = [name for name in here if name.endswith(_BESIDE) and not name.endswith(".index.json")]
    companions = [] if inside in names else [name for name in companions if "/" not in name.removeprefix(folder)]
    path = snapshot([folder + chosen, *companions]) / folder / chosen
    if chosen.endswith(".index.json"):
        # One that is missing is reported when the index is opened, as it is on disk.
        with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
            snapshot(f"{folder}{shard}" for shard in set(parse_json(path.read_bytes())["weight_map"].values()))
    return path if inside in names else path.parent


def _weights(names: Sequence[str]) -> str | None:
    """The file of weights in a folder with these files; or the tensors of a task bank."""
    return choose_weights(names) or ("bank.safetensors" if {"bank.safetensors", "bank.json"} <= {*names} else None)


def _cached(location: str, repo: str, revision: str | None, inside: str, reason: Exception) -> Path:
    """What earlier calls downloaded."""
    from huggingface_hub import constants, snapshot_download

    # Nothing of it may be there: what huggingface_hub raises then is another class in every version.
    with suppress(Exception):
        found = Path(snapshot_download(repo, revision=revision, local_files_only=True)) / inside
        if found.is_file() or _weights([path.name for path in found.iterdir()]) is not None:
            return found
    offline = (
        "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"no connection: {reason or type(reason).__name__}"
    )
    raise MergeError(
        f"{location} is not in the cache ({constants.HF_HUB_CACHE}) and cannot be downloaded ({offline}): give "
        "a folder on this machine, or connect to the network"
    )
