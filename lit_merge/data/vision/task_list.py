"""The twenty vision tasks of the merging literature: where each one's images are, and what its classes are called."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from lit_merge.data.vision.layouts import ClassFolders, Layout, Listed
from lit_merge.data.vision.torchvision import Torchvision, arrays, faces, patches, pets, signs
from lit_merge.errors import MergeError

Splits = Mapping[str, Mapping[str, Any]]
WITH_VALIDATION: Splits = {"train": {"split": "train"}, "validation": {"split": "val"}, "test": {"split": "test"}}
TRAIN_FLAG: Splits = {"train": {"train": True}, "test": {"train": False}}
DIGITS = tuple("0123456789")
LIMITS = tuple(f"speed limit {speed} km/h" for speed in (20, 30, 50, 60, 70, 80))
SIGNS = (
    *LIMITS, "end of speed limit 80 km/h", "speed limit 100 km/h", "speed limit 120 km/h", "no passing",
    "no passing for trucks", "priority at the next crossing", "priority road", "yield", "stop", "no vehicles",
    "no trucks", "no entry", "danger", "curve to the left", "curve to the right", "double curve", "bumpy road",
    "slippery road", "road narrows", "road works", "traffic lights", "pedestrians", "children", "bicycles",
    "snow or ice", "deer", "end of all limits", "turn right", "turn left", "straight ahead", "straight ahead or right",
    "straight ahead or left", "keep right", "keep left", "roundabout", "end of no passing",
    "end of no passing for trucks",
)  # fmt: skip
FACES = ("angry", "disgusted", "afraid", "happy", "sad", "surprised", "neutral")


@dataclass(frozen=True)
class VisionTask:
    """A task of the literature.

    Args:
        name: as the task-arithmetic and TALL-masks releases write it.
        classes: how many it has.
        layouts: how its files may lie, the first that is found counts.
        hub: a copy on the Hugging Face Hub, with its splits train and test.
        also: other names for it.
        names: of its classes, where the data itself has none.
        splits: our splits → the Hub copy's, where it calls them otherwise.
    """

    name: str
    classes: int
    layouts: tuple[Layout, ...]
    hub: str | None = None
    also: tuple[str, ...] = ()
    names: tuple[str, ...] | None = None
    splits: tuple[tuple[str, str], ...] = ()


def _mnist(dataset: str, **options: Any) -> Torchvision:
    arguments = {split: dict(flag) | options for split, flag in TRAIN_FLAG.items()}
    return Torchvision(dataset, f"{dataset}/raw", arguments, arrays, home=dataset)


TASKS = (
    VisionTask(
        "SUN397", 397,
        (Listed("SUN397", {"train": "SUN397/Training_01.txt", "test": "SUN397/Testing_01.txt"},
                classes="SUN397/ClassName.txt"),),
        "tanganke/sun397",
    ),
    VisionTask(
        "Cars", 196,
        (Torchvision("StanfordCars", "stanford_cars", downloads=False), ClassFolders("stanford_cars_folder_based")),
        "tanganke/stanford_cars", ("stanford_cars",),
    ),
    VisionTask(
        "RESISC45", 45,
        (Listed("resisc45/NWPU-RESISC45",
                {split: f"resisc45/resisc45-{name}.txt" for split, name in
                 (("train", "train"), ("validation", "val"), ("test", "test"))}, by_name=True),),
        "tanganke/resisc45",
    ),
    VisionTask("EuroSAT", 10, (ClassFolders("EuroSAT_splits"),), "tanganke/eurosat"),
    VisionTask(
        "SVHN", 10,
        (Torchvision("SVHN", "test_32x32.mat", take=arrays, home="svhn"),),
        "ufldl-stanford/svhn/cropped_digits", names=DIGITS,
    ),
    VisionTask("GTSRB", 43, (Torchvision("GTSRB", "gtsrb", take=signs),), "tanganke/gtsrb", names=SIGNS),
    VisionTask("MNIST", 10, (_mnist("MNIST"),), "ylecun/mnist"),
    VisionTask("DTD", 47, (Torchvision("DTD", "dtd/dtd", WITH_VALIDATION), ClassFolders("dtd")), "tanganke/dtd"),
    VisionTask(
        "CIFAR100", 100, (Torchvision("CIFAR100", "cifar-100-python", TRAIN_FLAG, arrays),), "tanganke/cifar100"
    ),
    VisionTask("STL10", 10, (Torchvision("STL10", "stl10_binary", take=arrays),), "tanganke/stl10"),
    VisionTask(
        "Flowers102", 102,
        (Torchvision("Flowers102", "flowers-102", WITH_VALIDATION, home="flowers102"),),
        "dpdl-benchmark/oxford_flowers102", ("oxford_flowers102",),
    ),
    VisionTask(
        "OxfordIIITPet", 37,
        (Torchvision("OxfordIIITPet", "oxford-iiit-pet", {"train": {"split": "trainval"}, "test": {"split": "test"}},
                     pets, home="OxfordIIITPet"),),
        "timm/oxford-iiit-pet", ("pets", "oxford_pets"),
    ),
    VisionTask(
        "PCAM", 2,
        (Torchvision("PCAM", "pcam", WITH_VALIDATION, patches, home="PCAM"),),
        "1aurent/PatchCamelyon",
        names=("lymph node", "lymph node with metastatic tumour tissue"),
    ),
    VisionTask("FER2013", 7, (Torchvision("FER2013", "fer2013", take=faces, downloads=False),), names=FACES),
    VisionTask("EMNIST", 10, (_mnist("EMNIST", split="digits"),), names=DIGITS),
    VisionTask("CIFAR10", 10, (Torchvision("CIFAR10", "cifar-10-batches-py", TRAIN_FLAG, arrays),), "tanganke/cifar10"),
    VisionTask("Food101", 101, (Torchvision("Food101", "food-101"),), "ethz/food101", splits=(("test", "validation"),)),
    VisionTask("FashionMNIST", 10, (_mnist("FashionMNIST"),), "zalando-datasets/fashion_mnist"),
    VisionTask(
        "RenderedSST2", 2,
        (Torchvision("RenderedSST2", "rendered-sst2", WITH_VALIDATION, home="RenderedSST2"),),
        "nateraw/rendered-sst2",
    ),
    VisionTask("KMNIST", 10, (_mnist("KMNIST"),), "tanganke/kmnist"),
)  # fmt: skip
SUITES = (8, 14, 20)


def find_task(name: str) -> VisionTask:
    """A task by its name in any writing: `stanford-cars` is Cars.

    Raises:
        MergeError: there is none, with the nearest.
    """
    known = {_plain(one): task for task in TASKS for one in (task.name, *task.also)}
    if _plain(name) in known:
        return known[_plain(name)]
    near = get_close_matches(_plain(name), known, n=1, cutoff=0)[0]
    raise MergeError(
        f"no vision task {name!r}; the nearest is {known[near].name}; there are "
        f"{', '.join(task.name for task in TASKS)}; other data goes to HubImages or ImageFolders"
    )


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
