"""Models of the Hugging Face hub, `hf://org/name`: their weights and configuration, in huggingface_hub's own cache."""

import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from lit_merge.checkpoints.folders import ADAPTER_CONFIG, ADAPTERS, SUFFIXES, WEIGHTS, choose_weights
from lit_merge.checkpoints.json_text import parse_json
from lit_merge.errors import MergeError

PREFIX = "hf://"
_LOCATION = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^/]+))?(/(?P<inside>.+?))?/?")
# What lies next to weights and is small: configurations, tokenizers, chat templates.
_BESIDE = (".json", ".txt", ".model", ".jinja")
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
    try:
        import huggingface_hub
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
    except ImportError as error:
        raise MergeError(f"{location} needs huggingface_hub: pip install 'lit_merge[hf]'") from error
    huggingface_hub.utils.logging.set_verbosity_error()
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

    def download(name: str) -> Path:
        try:
            return Path(huggingface_hub.hf_hub_download(repo, name, revision=revision, etag_timeout=TIMEOUT))
        except Exception as error:
            raise MergeError(f"{location}: {name} could not be downloaded: {error}") from error

    return _download(location, names, inside, download)


def _download(location: str, names: Sequence[str], inside: str, download: Callable[[str], Path]) -> Path:
    """One file, or of a folder the weights that transformers would take and what belongs to them."""
    folder = f"{inside}/" if inside else ""
    if inside in names:
        wanted, folder = inside, inside[: inside.rfind("/") + 1]
    else:
        here = {name.removeprefix(folder) for name in names if name.startswith(folder)}
        chosen = choose_weights(here)
        if chosen is None:
            others = sorted(name for name in names if name.endswith(SUFFIXES))
            hint = f"; it has {', '.join(others[:5])}: add one to the name" if others else ""
            raise MergeError(f"{location} holds no weights under a name that is known{hint}")
        wanted = folder + chosen
        for name in sorted(here):
            if "/" not in name and name.endswith(_BESIDE) and not name.endswith(".index.json"):
                download(folder + name)
    path = download(wanted)
    if wanted.endswith(".index.json"):
        for shard in _shards(path):
            # One that is missing is reported when the index is opened, as it is on disk.
            if folder + shard in names:
                download(folder + shard)
    return path if wanted == inside else path.parent


def _shards(index: Path) -> Collection[str]:
    try:
        return sorted({str(shard) for shard in parse_json(index.read_bytes())["weight_map"].values()})
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return ()  # reported when it is opened


def _cached(location: str, repo: str, revision: str | None, inside: str, reason: Exception) -> Path:
    """What earlier calls downloaded."""
    from huggingface_hub import constants, try_to_load_from_cache

    def find(name: str) -> Any:
        return try_to_load_from_cache(repo, name, revision=revision)

    if inside and isinstance(path := find(inside), str):
        return Path(path)
    folder = f"{inside}/" if inside else ""
    there = [name for name in (ADAPTER_CONFIG, *ADAPTERS, *WEIGHTS) if isinstance(find(folder + name), str)]
    chosen = choose_weights(there)
    if chosen is not None:
        return Path(find(folder + chosen)).parent
    offline = (
        "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"no connection: {reason or type(reason).__name__}"
    )
    raise MergeError(
        f"{location} is not in the cache ({constants.HF_HUB_CACHE}) and cannot be downloaded ({offline}): give "
        "a folder on this machine, or connect to the network"
    )
