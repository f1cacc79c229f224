"""lit_merge: merge fine-tuned models, adapt the merge on unlabelled data, ship it as a small task bank.

The public names are in `__init__.pyi`. Each is loaded on first use: `python -m lit_merge --help` does not wait for
torch.
"""

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from types import ModuleType

import lazy_loader

__version__ = version("lit_merge")
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

# Modules that scripts and methods of one's own import, and where they are now.
MOVED = {
    "adapting": "adaptation.adapt",
    "bank_files": "bank.files",
    "callbacks": "adaptation.callbacks",
    "choosing": "choose.scale",
    "command": "cli.main",
    "data.base": "data.task_data",
    "data.image_files": "data.images.files",
    "decompositions": "experts.decompositions",
    "deltas": "bank.low_rank",
    "linalg": "bank.linalg",
    "locations": "checkpoints.locations",
    "low_rank": "bank.low_rank",
    "merged_model": "adaptation.merged_model",
    "ranks": "bank.low_rank",
    "runs": "adaptation.run",
    "stages": "adaptation.stages",
    "stored_bank": "adaptation.stored_bank",
    "streaming": "choose.write",
    "task_bank": "bank.task_bank",
    "trainer": "adaptation.trainer",
    "transforms": "methods",
    "unfinished": "adaptation.unfinished_fit",
    "weights": "experts.weight",
}


class _MovedModules(MetaPathFinder, Loader):
    """Imports a module that has moved from where it is now, and says so."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        package, _, module = name.partition(".")
        return ModuleSpec(name, self) if package == __name__ and module in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        place = f"{__name__}.{MOVED[spec.name.partition('.')[2]]}"
        warnings.warn(f"{spec.name} has moved to {place}", DeprecationWarning, stacklevel=2)
        self.found = import_module(place)
        self.own = self.found.__spec__
        return self.found

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.own  # the import has put the old name there


sys.meta_path.append(_MovedModules())
