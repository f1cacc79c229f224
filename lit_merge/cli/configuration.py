"""What a command line and its configuration files say of a verb: read without Lightning, built part by part."""

import functools
from argparse import SUPPRESS
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Any, Literal, cast

from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from lit_merge import data, methods, networks, objectives  # noqa: F401  short class names are found once imported
from lit_merge.adaptation.options import Adaptation, spelled_out
from lit_merge.checkpoints import check_output
from lit_merge.checkpoints.kinds import Kind
from lit_merge.checkpoints.locations import destination, resolve
from lit_merge.choose.sources import Sources
from lit_merge.choose.unlabelled import Later
from lit_merge.cli.manner import LOG, QUIET
from lit_merge.cli.parsing import building, parser_of, parsing
from lit_merge.cli.threads import settled_threads, use_threads
from lit_merge.cli.trainer_options import trainer_options, without_opaque
from lit_merge.console import Manner, say, use_manner
from lit_merge.data import TaskData, only_read
from lit_merge.errors import MergeError, check_between, check_finite
from lit_merge.experts.files import expert_files

# The sampler splits batches among processes itself; a run's log is a CSV file in its folder unless a logger is named.
TRAINER_DEFAULTS = {
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,
    "log_every_n_steps": 10,
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
}
# Of numbers that Python, PyTorch or the system cannot take; Lightning itself refuses others.
RANGES = {
    "threads": (1, 1024),
    "seed_everything": (0, 2**32 - 1),
    "trainer.devices": (-1, 1024),
    "trainer.num_nodes": (1, 2**20),
    "trainer.max_steps": (-1, 2**53),
    "trainer.min_steps": (0, 2**53),
    "trainer.max_epochs": (-1, 2**53),
    "trainer.min_epochs": (0, 2**53),
    "trainer.accumulate_grad_batches": (1, 2**31),
    "trainer.gradient_clip_val": (0, 2**31),
    "trainer.log_every_n_steps": (0, 2**53),
    "trainer.num_sanity_val_steps": (-1, 2**53),
    "trainer.check_val_every_n_epoch": (1, 2**53),
    "trainer.reload_dataloaders_every_n_epochs": (0, 2**53),
    **{f"trainer.limit_{split}_batches": (0, 2**53) for split in ("train", "val", "test", "predict")},
}
# What of a model says what is merged how.
MERGED = ("experts", "base", "exclude", "crop", "method", "transform", "bank", "decompositions", "svd")


class _Model:
    """What is merged, and what a fit learns of it."""

    @spelled_out(Sources, Adaptation)
    def __init__(self, network: networks.Network | None = None, **options: Any) -> None: ...


class Configuration:
    """The options of one verb, all checked; classes among them are built when they are asked for.

    Attributes:
        verb: of the command line.
        options: as they were given, with defaults.
    """

    def __init__(
        self,
        verb: str,
        arguments: Sequence[str],
        own: Callable[..., None],
        about: str,
        switches: Mapping[str, str] = MappingProxyType({}),
        skip: Collection[str] = (),
    ) -> None:
        """Parses.

        Args:
            verb: of the command line.
            arguments: what follows it.
            own: a function whose arguments are the verb's own options.
            about: what the verb does, for its help.
            switches: more of them → what they do, which may be written with dashes too.
            skip: arguments of `own` that are no options of this verb.

        Raises:
            MergeError: an unknown option or value, in one line.
        """
        self.verb, self._parser = verb, _full_parser(verb, own, about, tuple(switches.items()), tuple(skip))
        with parsing(arguments, lambda: [action.dest for action in self._parser._actions]):
            self.options = self._parser.parse_args(without_opaque(arguments, trainer_options()))
        for name in ("model", "trainer"):
            if name in self.options and self.options[name] is None:
                raise MergeError(f"{name} is empty in the configuration: give it options, or leave it out")
        check_finite(self.options.as_dict())
        for name, (least, most) in RANGES.items():
            value = self.options.get(name)
            # Some may be words, too: as numbers they are text.
            number = isinstance(value, str) and value.removeprefix("-").isdecimal() and len(value) < 99
            check_between(name, int(value) if number else value, least, most)
        if self.options.threads is not None:  # of a configuration file
            use_threads(self.options.threads)
        if self.options.quiet or self.options.log != "text":  # of a configuration file
            use_manner(Manner(self.options.quiet, self.options.log == "json"))
        if threads := settled_threads():
            say(f"computing with {threads}")
        for name in ("run", "output"):
            if self.options.get(name) is not None:
                self.options[name] = str(destination(self.options[name]))

    def __getitem__(self, name: str) -> Any:
        return self.options[name]

    def check_output(self, option: str, kind: Kind | None = None) -> str:
        """The place that the verb writes to; nothing but its own kind is replaced.

        Raises:
            MergeError: it is not given; something is there that is not to be replaced; it cannot be written.
        """
        if self.options[option] is None:
            raise MergeError(f"{self.verb} needs --{option}, the place to write to")
        check_output(self.options[option], self.options.overwrite, kind)
        return str(self.options[option])

    def check_inputs(self) -> None:
        """Raises MergeError where a path of experts, base or bank is none, before anything heavy is imported."""
        model = self.options.model
        files = expert_files(model.experts, model.base) if model.experts else {}
        for label, place in (*files.items(), ("base", model.base), ("bank", model.bank)):
            if place is not None and not (path := resolve(place)).exists():
                raise MergeError(f"{label}: {path}: no such file or folder")

    def sources(self) -> Sources:
        """What is merged, opened. Networks and data are built when a method looks at unlabelled inputs."""
        wanted = self.options.model.clone()
        for name in vars(wanted).keys() - set(MERGED):
            wanted[name] = None
        made = self._built(Namespace(model=wanted)).model
        later = {"network": self._later("model.network"), "data": self._later("data")}
        accelerator = self.options.trainer.accelerator
        return Sources(**cast(Any, later), accelerator=accelerator, **{name: made[name] for name in MERGED})

    def data(self) -> TaskData:
        """The data, built.

        Raises:
            MergeError: none is named.
        """
        later: Later[TaskData] | None = self._later("data")
        if later is None:
            raise MergeError(f"{self.verb} needs --data: the class and options of the data, for example Suite")
        return later.built

    def built(self, name: str) -> Any:
        """One option, with its classes built."""
        return self._built(Namespace({name: self.options[name]}))[name]

    def _later(self, key: str) -> Later[Any] | None:
        asked = self.options.get(key)
        if asked is None:
            return None

        def build() -> Any:
            return self._built(Namespace({key: asked}))[key]

        module, _, name = asked.class_path.rpartition(".")
        return Later(getattr(import_module(module), name), build)

    def _built(self, part: Namespace) -> Namespace:
        # By its newer name first: warnings come with the older one.
        build = getattr(self._parser, "instantiate", None) or self._parser.instantiate_classes
        with building(), only_read():
            return cast(Namespace, build(part, instantiate_groups=False))


@functools.lru_cache
def _full_parser(
    verb: str, own: Callable[..., None], about: str, switches: tuple[tuple[str, str], ...], skip: tuple[str, ...]
) -> ArgumentParser:
    """The parser of a verb: its own options come first in its help, the Trainer's last. It is made once a process."""
    made = parser_of(verb, about)
    made.add_argument("--run", type=str | None, help="fit: the folder that it leaves")
    made.add_argument("--output", type=str | None, help="the other verbs: what they write")
    made.add_argument("--overwrite", action=ActionYesNo, help="replace what stands there")
    made.add_argument("--threads", type=int | None, help="as many threads; by default those that this machine allows")
    made.add_argument("--quiet", action="store_true", help=QUIET)
    made.add_argument("--log", type=Literal["text", "json"], default="text", help=LOG)
    made.add_argument("--seed_everything", type=bool | int, default=True, help="seed of all random numbers")
    made.add_function_arguments(own, skip=set(skip))
    for name, text in switches:
        made.add_argument(f"--{name}", f"--{name.replace('_', '-')}", action=ActionYesNo, help=text)
    made.add_class_arguments(_Model, "model", skip={"data", "accelerator"}, sub_configs=True)
    made.add_subclass_arguments(TaskData, "data", required=False)
    made.add_class_arguments(trainer_options(), "trainer")
    made.set_defaults({f"trainer.{name}": value for name, value in TRAINER_DEFAULTS.items()})
    for name in ("optimizer", "lr_scheduler"):
        made.add_argument(f"--{name}", type=Any, help=SUPPRESS)
    return made
