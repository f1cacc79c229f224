"""Writing without half results: everything is written beside its place and renamed when it is whole."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lit_merge.errors import MergeError


def check_output(path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """Refuses early, before any work is done, a path that exists or that cannot be written.

    Raises:
        MergeError: the path exists and `overwrite` is off, or no file can be made beside it.
    """
    target = Path(path)
    try:
        if (target.exists() or target.is_symlink()) and not overwrite:
            raise MergeError(f"{target} exists: pass --overwrite to replace it, or choose another place")
        # Walk up to the folder that exists, so that nothing is made for a run that fails later.
        parent = target.absolute().parent
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir():
            raise MergeError(f"{target} cannot be written: {parent} is a file")
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise MergeError(f"{target} cannot be written: {error.strerror}") from error
    return target


@contextmanager
def replacing(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """Yields a fresh path beside `path` for a file or folder; renames it to `path` when the block succeeds.

    When the block fails nothing is left of it, and what stood at `path` stands there still.

    Raises:
        MergeError: as `check_output`, or the disk is full.
    """
    target = check_output(path, overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        workplace = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise MergeError(f"{target} cannot be written: {error.strerror}") from error
    new, old = workplace / target.name, workplace / f"{target.name}.old"
    try:
        yield new
        if target.is_dir() and not target.is_symlink():
            if not new.is_dir():
                raise MergeError(f"{target} is a folder, which a file does not replace: choose another place")
            # A folder cannot be renamed over a full one.
            target.rename(old)
        os.replace(new, target)
    except MergeError as error:
        # Of a file inside a folder that is being written: its place is where the folder will stand.
        raise MergeError(str(error).replace(str(new), str(target)), task=error.task, weight=error.weight) from error
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MergeError(f"{target} could not be written: {reason}; nothing was changed") from error
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(workplace, ignore_errors=True)


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes one safetensors file, whole or not at all."""
    with replacing(path, overwrite) as beside:
        # safetensors refuses tensors that share memory, as views of one merge may.
        whole = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        beside.touch()
        mode = beside.stat().st_mode
        save_file(whole, beside, dict(metadata or {"format": "pt"}))
        # safetensors makes files that only their owner may read.
        beside.chmod(mode)


def write_text(path: str | os.PathLike[str], text: str, overwrite: bool = False) -> None:
    """Writes one text file in UTF-8, whole or not at all."""
    with replacing(path, overwrite) as beside:
        beside.write_text(text, encoding="utf-8")
