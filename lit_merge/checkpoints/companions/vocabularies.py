"""Which token has which number in the tokenizer of a folder, by its files alone; and where two of them differ."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lit_merge.checkpoints.checkpoint import Checkpoint
from lit_merge.checkpoints.json_text import read_object
from lit_merge.errors import MergeError

# Files that number tokens, and those whose numbers only their library can tell.
NUMBERED = ("tokenizer.json", "vocab.json", "vocab.txt", "added_tokens.json", "tokenizer_config.json")
OPAQUE = ("*.model", "*.tiktoken")


class Conflict(NamedTuple):
    """A number that two tokenizers give to different tokens; None where only their bytes can be compared.

    Attributes:
        place: which of the folders that were compared it was found in.
        number: the lowest that differs.
        text: what differs, in words, both folders in it.
    """

    place: int
    number: int | None
    text: str


def tokenizer_of(checkpoint: Checkpoint) -> Path | None:
    """The folder of a checkpoint's tokenizer: of an adapter its own, where it has one, or else its base's."""
    folders = dict.fromkeys(file.parent for file in checkpoint.files)
    return next((folder for folder in folders if _files(folder)), None)


def conflicts(folders: Iterable[Path | None], rows: int) -> Iterator[Conflict]:
    """Where tokenizers differ from those before them, in numbers below `rows`; what some of them do not number is the
    same in all. Files of the same bytes are not looked into.

    Raises:
        MergeError: a file that is no JSON, or not of a tokenizer.
    """
    first: dict[object, tuple[int, Path]] = {}
    for index, folder in enumerate(folders):
        if folder is not None:
            first.setdefault(tuple(sorted(prints(folder).items())), (index, folder))
    if len(first) < 2:
        return
    seen: dict[int, tuple[str, Path]] = {}
    opaque: dict[str, tuple[str, Path]] = {}
    for index, folder in first.values():
        if not _has_main(folder):
            # Numbers of these are not known here: the same file has the same.
            for name, digest in prints(folder).items():
                before, other = opaque.setdefault(name, (digest, folder))
                if name not in NUMBERED and before != digest:
                    yield Conflict(index, None, f"{name} in {other} is another than that in {folder}")
        tokens = read_tokens(folder)
        found = [n for n, token in tokens.items() if n < rows and seen.get(n, (token,))[0] != token]
        if found:
            token, other = seen[number := min(found)]
            yield Conflict(index, number, f"token {number} is {token!r} in {other} and {tokens[number]!r} in {folder}")
        for number, token in tokens.items():
            seen.setdefault(number, (token, folder))


def token_count(folder: Path) -> int:
    """The highest number of a token, and one; 0 where the folder has no tokenizer.

    Raises:
        MergeError: a file that is no JSON, or not of a tokenizer.
    """
    return max(read_tokens(folder), default=-1) + 1


def read_tokens(folder: Path) -> dict[int, str]:
    """Number → token, of the tokenizer in a folder.

    Raises:
        MergeError: a file that is no JSON, or not of a tokenizer.
    """
    found: dict[int, str] = {}
    if about := read_json(folder / "tokenizer.json"):
        found = _of_fast(about, folder / "tokenizer.json")
    else:
        found = _of_mapping(read_json(folder / "vocab.json"))
        if (file := folder / "vocab.txt").is_file():
            found |= dict(enumerate(_text(file).removesuffix("\n").split("\n")))
        found |= _of_mapping(read_json(folder / "added_tokens.json"))
    decoder = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
    for number, token in decoder.items() if isinstance(decoder, dict) else ():
        if str(number).isdecimal():
            found.setdefault(int(number), content(token))
    return found


def content(token: Any) -> str:
    """The text of a token that may stand with what is said of it."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file.

    Raises:
        MergeError: no JSON, or no object.
    """
    return read_object(file, "tokenizer's file") if file.is_file() else {}


def _of_fast(about: Mapping[str, Any], file: Path) -> dict[int, str]:
    try:
        vocabulary = (about.get("model") or {}).get("vocab") or ()
        # Unigram models have a list, whose order numbers the tokens.
        named = _of_mapping(vocabulary) if isinstance(vocabulary, dict) else {n: v[0] for n, v in enumerate(vocabulary)}
        return named | {int(token["id"]): token["content"] for token in about.get("added_tokens") or ()}
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise MergeError(f"{file} is not of a tokenizer: its tokens have no numbers") from error


def _of_mapping(numbers: Mapping[str, Any]) -> dict[int, str]:
    return {number: token for token, number in numbers.items() if isinstance(number, int)}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MergeError(f"{file} cannot be read: {error}") from error


def _files(folder: Path) -> list[Path]:
    named = [folder / name for name in NUMBERED if (folder / name).is_file()]
    return named + sorted(file for pattern in OPAQUE for file in folder.glob(pattern))


def _has_main(folder: Path) -> bool:
    return any((folder / name).is_file() for name in NUMBERED[:3])


def prints(folder: Path) -> dict[str, str]:
    """Name → digest, of the files of the tokenizer in a folder; of the same files the tokens are the same.

    Raises:
        MergeError: a file that cannot be read.
    """
    try:
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in _files(folder)}
    except OSError as error:
        raise MergeError(f"{error.filename} cannot be read: {error.strerror}") from error
