"""lit_merge: merge fine-tuned models, adapt the merge on unlabelled data, ship it as a small task bank.

The public names are in `__init__.pyi`. Each is loaded on first use: `python -m lit_merge --help` does not wait for
torch.
"""

from importlib.metadata import version

import lazy_loader

__version__ = version("lit_merge")
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
