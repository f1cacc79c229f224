"""Parsing of command lines and their configuration files: how files are read, and what is said of mistakes."""

import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, set_loader, set_parsing_settings
from jsonargparse._optionals import get_omegaconf_loader
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lit_merge.checkpoints.inputs import reads
from lit_merge.cli.class_paths import only_wanted
from lit_merge.cli.command_parser import offer
from lit_merge.cli.empty_values import refuse_empty
from lit_merge.cli.parse_errors import explain, refusal
from lit_merge.cli.written import DoubleKeyError, read_written
from lit_merge.errors import MergeError, first_line

MODE = "omegaconf+"
"""Resolves interpolations after command-line options have gone over the file; plain omegaconf before."""
# Packages of loggers, whose errors are of their options.
LOGGERS = ("mlflow", "wandb", "comet_ml", "neptune")
_load: Callable[[str], Any] = get_omegaconf_loader(MODE)


class _VerbParser(ArgumentParser):
    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        offer(self)
        found = super().parse_args(*args, **kwargs)
        refuse_empty(self, found)
        return found


def parser_of(verb: str, about: str) -> ArgumentParser:
    """The parser of a verb that takes configuration files, with no other option yet; `about` says what it does."""
    made = _VerbParser(
        prog=f"lit-merge {verb}",
        description=about,
        exit_on_error=False,
        parser_mode=MODE,
        allow_abbrev=False,
    )
    made.add_argument("-c", "--config", action="config", help="a YAML file of options, which serves every verb")
    return made


@contextmanager
def parsing(arguments: Sequence[str], options: Callable[[], Iterable[str]]) -> Iterator[None]:
    """Around a parser's work on `arguments`.

    Args:
        arguments: of the verb.
        options: names of all options of the verb, asked for when something is wrong.

    Raises:
        MergeError: anything that the user can mend, in one line.
    """
    files = list(_config_files(arguments))
    _refuse_pipes(argument.partition("=")[2] if argument[:2] == "--" else argument for argument in arguments)
    for file in files:
        _check_text(reads(Path(file)))
    refused: list[MergeError] = []
    set_parsing_settings(config_read_mode_urls_enabled=False, omegaconf_absolute_to_relative_paths=True)
    set_loader(MODE, partial(_read, refused), (YAMLError,))
    not_wanted: list[MergeError] = []
    try:
        with only_wanted(not_wanted):
            yield
    except (ArgumentError, OmegaConfBaseException) as error:
        raise (refused or not_wanted or [MergeError(explain(str(error), options(), files))])[0] from error
    finally:
        # What is written of a configuration is read as YAML.
        set_loader(MODE, _read_plainly, (YAMLError,))
    # Where text would do too, the parser goes on with it.
    if refused:
        raise refused[0]


@contextmanager
def building() -> Iterator[None]:
    """Around the building of what a configuration names.

    Raises:
        MergeError: what jsonargparse has wrapped; a file that cannot be read; a package that is missing, as
            tensorboard may be.
    """
    try:
        yield
    except (ValueError, ModuleNotFoundError) as error:
        if (cause := cause_of(error)) is None:
            if (said := refusal(str(error))) is None:
                raise
            cause = MergeError(said)
        raise cause from error
    except TypeError as error:
        # Of jsonargparse, which looks into files that options name: the disk fails.
        failed: BaseException | None = error
        while failed is not None and not isinstance(failed, OSError):
            failed = failed.__cause__
        if failed is None:
            raise
        raise MergeError(f"a file that an option names cannot be read: {failed.strerror}") from error


def cause_of(error: BaseException) -> MergeError | None:
    """The mistake of a user that has led to this error, if one has."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, MergeError):
        if isinstance(found, ModuleNotFoundError):
            return MergeError(f"a package is missing: {first_line(found)}")
        if type(found).__module__.partition(".")[0] in LOGGERS:
            return MergeError(f"trainer.logger: {first_line(found)}")
        found = found.__cause__ or found.__context__
    return found


def _read_plainly(text: str, path: Any = "") -> Any:
    """What YAML text holds. jsonargparse hands the path to every loader after one that takes it: it is not used."""
    return _load(text)


def _read(refused: list[MergeError], text: str, path: Any = "") -> Any:
    """What a configuration or an option holds, with text for numbers, as the command line has it."""
    try:
        found = read_written(text)
    except DoubleKeyError as error:
        where = path or ("a configuration" if "\n" in text.strip() else text)
        refused.append(MergeError(f"{where}: {error.problem}"))
        raise
    if isinstance(found, dict) and all(value is None for value in found.values()):
        # `a:` and `{a, b}` may be meant as text.
        return text if isinstance(_load(text), str) else found
    if isinstance(found, dict | list):
        # As JSON, in which text has quotes, and which is YAML too.
        return _load(json.dumps(found, ensure_ascii=False))
    # A home folder, where it is an option by itself.
    return text if text.strip() == "~" else found


def _config_files(arguments: Sequence[str]) -> Iterator[str]:
    names = ("--config", "-c")
    for i, argument in enumerate(arguments):
        name, separator, value = argument.partition("=")
        if name in names and separator:
            yield value
        elif argument in names and i + 1 < len(arguments):
            yield arguments[i + 1]


def _refuse_pipes(values: Iterable[str]) -> None:
    """Raises MergeError where a value is a pipe or a device: the parser looks into every file that an option names, and
    would wait for it."""
    for value in values:
        try:
            mode = os.stat(os.path.expanduser(value)).st_mode
        except (OSError, ValueError):
            continue
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise MergeError(f"{value} is a pipe or a device, expected a file or a folder")


def _texts(value: Any) -> Iterator[str]:
    """All that is text in a configuration."""
    if isinstance(value, str):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(one)


def _check_text(path: Path) -> None:
    """Raises MergeError where a file is no UTF-8, or names a pipe."""
    try:
        _refuse_pipes(_texts(read_written(path.read_bytes().decode("utf-8"))))
    except UnicodeDecodeError as error:
        raise MergeError(f"{path} is no text in UTF-8: save it in UTF-8") from error
    except MergeError:
        raise
    except (OSError, ValueError, YAMLError):
        return  # the parser reports what is no file
