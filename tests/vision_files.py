"""Small real files of the vision tasks, as torchvision and the task-arithmetic code expect them."""

import csv
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

CLASSES = 3
# Images of every split; a tenth of twenty is two.
SIZES = {"train": 20, "validation": 5, "test": 7}
# Modules of torchvision.datasets that compare files with the digest of the originals.
CHECKED = ("cifar", "svhn", "stl10", "flowers102", "fer2013")


def draw(task: str, split: str, size: tuple[int, int] = (40, 30), grey: bool = False) -> tuple[np.ndarray, list[int]]:
    """Images (N, H, W, 3) or (N, H, W), all different, and their classes, every one of which occurs."""
    generator = np.random.default_rng(zlib.crc32(f"{task} {split}".encode()))
    count = SIZES[split]
    labels = [i % CLASSES for i in range(count)]
    shape = (count, *size) if grey else (count, *size, 3)
    return generator.integers(0, 256, shape, dtype=np.uint8), labels


def save(image: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def mnist(root: Path, name: str, prefix: str = "") -> None:
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for split, called in (("train", "train"), ("test", "test" if prefix else "t10k")):
        images, labels = draw(name, split, (28, 28), grey=True)
        header = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in images.shape)
        (raw / f"{prefix}{called}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = b"\0\0\x08\x01" + len(labels).to_bytes(4, "big")
        (raw / f"{prefix}{called}-labels-idx1-ubyte").write_bytes(header + bytes(labels))


def cifar10(root: Path) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    images, labels = draw("CIFAR10", "train", (32, 32))
    for i in range(5):
        part = slice(4 * i, 4 * i + 4)
        _pickle({"data": _flat(images[part]), "labels": labels[part]}, folder / f"data_batch_{i + 1}")
    images, labels = draw("CIFAR10", "test", (32, 32))
    _pickle({"data": _flat(images), "labels": labels}, folder / "test_batch")
    _pickle({"label_names": ["airplane", "automobile", "bird"]}, folder / "batches.meta")


def cifar100(root: Path) -> None:
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        images, labels = draw("CIFAR100", split, (32, 32))
        _pickle({"data": _flat(images), "fine_labels": labels}, folder / split)
    _pickle({"fine_label_names": ["apple", "aquarium_fish", "baby"]}, folder / "meta")


def _flat(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def _pickle(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


def svhn(root: Path) -> None:
    (root / "svhn").mkdir(parents=True)
    for split in ("train", "test"):
        images, labels = draw("SVHN", split, (32, 32))
        tens = np.array([[label or 10] for label in labels], np.uint8)
        savemat(root / "svhn" / f"{split}_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": tens})


def stl10(root: Path) -> None:
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        images, labels = draw("STL10", split, (96, 96))
        (folder / f"{split}_X.bin").write_bytes(images.transpose(0, 3, 2, 1).tobytes())
        (folder / f"{split}_y.bin").write_bytes(bytes(label + 1 for label in labels))
    (folder / "class_names.txt").write_text("airplane\nbird\ncar\n")


def gtsrb(root: Path) -> None:
    place = root / "gtsrb" / "GTSRB"
    images, labels = draw("GTSRB", "train")
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        save(image, place / "Training" / f"{label:05d}" / f"00000_{i:05d}.ppm")
    images, labels = draw("GTSRB", "test")
    rows = [{"Filename": f"{i:05d}.ppm", "ClassId": label} for i, label in enumerate(labels)]
    for image, row in zip(images, rows, strict=True):
        save(image, place / "Final_Test" / "Images" / row["Filename"])
    with (root / "gtsrb" / "GT-final_test.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["Filename", "ClassId"], delimiter=";")
        writer.writeheader()
        writer.writerows(rows)


def dtd(root: Path) -> None:
    place = root / "dtd" / "dtd"
    (place / "labels").mkdir(parents=True)
    names = ["banded", "chequered", "polka-dotted"]
    for split, called in (("train", "train"), ("validation", "val"), ("test", "test")):
        images, labels = draw("DTD", split)
        files = [f"{names[label]}/{names[label]}_{split}_{i:04d}.png" for i, label in enumerate(labels)]
        for image, file in zip(images, files, strict=True):
            save(image, place / "images" / file)
        (place / "labels" / f"{called}1.txt").write_text("\n".join(files) + "\n")


def cars(root: Path) -> None:
    place = root / "stanford_cars"
    (place / "devkit").mkdir(parents=True)
    names = np.array(["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "McLaren MP4-12C Coupe 2012"], object)
    savemat(place / "devkit" / "cars_meta.mat", {"class_names": names})
    lists = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
    for split, path in lists.items():
        images, labels = draw("Cars", split)
        rows = np.array(
            [(f"{i:05d}.png", label + 1) for i, label in enumerate(labels)], [("fname", object), ("class", object)]
        )
        for image, row in zip(images, rows, strict=True):
            save(image, place / f"cars_{split}" / row["fname"])
        savemat(place / path, {"annotations": rows})


def flowers102(root: Path) -> None:
    place = root / "flowers-102"
    place.mkdir(parents=True)
    numbers: dict[str, list[int]] = {}
    found: list[int] = []
    for split, called in (("train", "trnid"), ("validation", "valid"), ("test", "tstid")):
        images, labels = draw("Flowers102", split)
        numbers[called] = [len(found) + 1 + i for i in range(len(labels))]
        for image, number in zip(images, numbers[called], strict=True):
            save(image, place / "jpg" / f"image_{number:05d}.jpg")
        found += [label + 1 for label in labels]
    savemat(place / "imagelabels.mat", {"labels": np.array(found)})
    savemat(place / "setid.mat", {name: np.array(found) for name, found in numbers.items()})


def pets(root: Path) -> None:
    place = root / "oxford-iiit-pet"
    (place / "annotations").mkdir(parents=True)
    names = ["Abyssinian", "american_bulldog", "Bengal"]
    for split, called in (("train", "trainval"), ("test", "test")):
        images, labels = draw("OxfordIIITPet", split)
        ids = [f"{names[label]}_{split == 'test':d}{i:02d}" for i, label in enumerate(labels)]
        for image, name in zip(images, ids, strict=True):
            save(image, place / "images" / f"{name}.jpg")
        lines = [f"{name} {label + 1} 1 1" for name, label in zip(ids, labels, strict=True)]
        (place / "annotations" / f"{called}.txt").write_text("\n".join(lines) + "\n")


def pcam(root: Path) -> None:
    from h5py import File

    (root / "pcam").mkdir(parents=True)
    for split, called in (("train", "train"), ("validation", "valid"), ("test", "test")):
        images, labels = draw("PCAM", split, (96, 96))
        for letter, values in (("x", images), ("y", np.array(labels).reshape(-1, 1, 1, 1) % 2)):
            with File(root / "pcam" / f"camelyonpatch_level_2_split_{called}_{letter}.h5", "w") as file:
                file[letter] = values


def fer2013(root: Path) -> None:
    (root / "fer2013").mkdir(parents=True)
    with (root / "fer2013" / "fer2013.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["emotion", "pixels", "Usage"])
        for split, usage in (("train", "Training"), ("test", "PublicTest")):
            for image, label in zip(*draw("FER2013", split, (48, 48), grey=True), strict=True):
                writer.writerow([label, " ".join(map(str, image.flatten())), usage])


def food101(root: Path) -> None:
    place = root / "food-101"
    (place / "meta").mkdir(parents=True)
    names = ["apple_pie", "baklava", "ramen"]
    for split in ("train", "test"):
        images, labels = draw("Food101", split)
        listed: dict[str, list[str]] = {name: [] for name in names}
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            listed[names[label]].append(f"{names[label]}/{split}{i}")
            save(image, place / "images" / f"{names[label]}/{split}{i}.jpg")
        (place / "meta" / f"{split}.json").write_text(json.dumps(listed))


def rendered_sst2(root: Path) -> None:
    names = ["negative", "positive"]
    for split, called in (("train", "train"), ("validation", "valid"), ("test", "test")):
        for i, (image, label) in enumerate(zip(*draw("RenderedSST2", split), strict=True)):
            save(image, root / "rendered-sst2" / called / names[label % 2] / f"{i}.png")


def sun397(root: Path) -> None:
    names = ["/a/abbey", "/a/apartment_building/outdoor", "/b/bazaar"]
    (root / "SUN397").mkdir(parents=True)
    (root / "SUN397" / "ClassName.txt").write_text("\n".join(names) + "\n")
    for split, called in (("train", "Training"), ("test", "Testing")):
        images, labels = draw("SUN397", split)
        lines = [f"{names[label]}/sun_{split}{i}.jpg" for i, label in enumerate(labels)]
        for image, line in zip(images, lines, strict=True):
            save(image, root / "SUN397" / line.strip("/"))
        (root / "SUN397" / f"{called}_01.txt").write_text("\n".join(lines) + "\n")


def resisc45(root: Path) -> None:
    names = ["airport", "baseball_diamond", "beach"]
    (root / "resisc45").mkdir(parents=True)
    for split, called in (("train", "train"), ("validation", "val"), ("test", "test")):
        images, labels = draw("RESISC45", split)
        lines = [f"{names[label]}_{100 * len(split) + i}.jpg" for i, label in enumerate(labels)]
        for image, line, label in zip(images, lines, labels, strict=True):
            save(image, root / "resisc45" / "NWPU-RESISC45" / names[label] / line)
        (root / "resisc45" / f"resisc45-{called}.txt").write_text("\n".join(lines) + "\n")


def eurosat(root: Path) -> None:
    names = ["AnnualCrop", "Forest", "SeaLake"]
    for split, called in (("train", "train"), ("validation", "val"), ("test", "test")):
        for i, (image, label) in enumerate(zip(*draw("EuroSAT", split), strict=True)):
            save(image, root / "EuroSAT_splits" / called / names[label] / f"{i:02d}.png")


WRITERS = {
    "SUN397": sun397,
    "Cars": cars,
    "RESISC45": resisc45,
    "EuroSAT": eurosat,
    "SVHN": svhn,
    "GTSRB": gtsrb,
    "MNIST": lambda root: mnist(root, "MNIST"),
    "DTD": dtd,
    "CIFAR100": cifar100,
    "STL10": stl10,
    "Flowers102": flowers102,
    "OxfordIIITPet": pets,
    "PCAM": pcam,
    "FER2013": fer2013,
    "EMNIST": lambda root: mnist(root, "EMNIST", "emnist-digits-"),
    "CIFAR10": cifar10,
    "Food101": food101,
    "FashionMNIST": lambda root: mnist(root, "FashionMNIST"),
    "RenderedSST2": rendered_sst2,
    "KMNIST": lambda root: mnist(root, "KMNIST"),
}


def table(task: str, split: str, names: list[str] | None = None) -> Any:
    """A `datasets.Dataset` with a column of images, PNG in its bytes, and one of classes."""
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageColumn

    images, labels = draw(task, split)
    features = Features({"image": ImageColumn(), "label": ClassLabel(names=names or ["a_b", "c", "d"])})
    return Dataset.from_dict({"image": [Image.fromarray(one) for one in images], "label": labels}, features)
