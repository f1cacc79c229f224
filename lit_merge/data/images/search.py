"""Which files below a folder are images: by the suffixes that Pillow reads, through links, each of them once."""

import functools
import os
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from mimetypes import MimeTypes
from pathlib import Path

from PIL import Image

# Formats that Pillow recognises but does not decode: data of the weather and of measurements, films, and drawings that
# other programs draw.
NOT_DECODED = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF", "EPS"}
# Images that Pillow does not decode.
OTHER_IMAGES = {
    *(".svg", ".svgz", ".eps", ".ps", ".wmf", ".emf", ".heic", ".heif", ".hif", ".jxl", ".exr", ".hdr", ".dcm", ".xcf"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"),
}
# Formats that say in their first bytes what they are.
TELLING = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM")
# Not what a machine's own tables say: the same files are images everywhere.
KINDS = MimeTypes()


@functools.cache
def suffixes() -> frozenset[str]:
    """Suffixes, in small letters, of the files that Pillow decodes."""
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, kind in known.items() if kind in Image.OPEN and kind not in NOT_DECODED)


@dataclass
class Found:
    """What lies below a folder.

    Attributes:
        images: image files, sorted.
        left_out: what else may be an image, by how it is called → how many.
        again: links to images that are there already.
    """

    images: list[Path] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    again: int = 0


def search(root: Path) -> Found:
    """All images below a folder. What is in hidden folders is none of it, nor are other systems' notes, `._a.png`.

    Links are followed, but neither round in circles nor up to a folder that holds `root`. What several links lead to
    counts once: where it lies itself, or else by the first of their names.

    Raises:
        OSError: a folder that cannot be read.
    """
    found = Found()
    files: dict[str, Path] = {}
    for path, real in sorted(_files(root, found), key=lambda one: (one[1] is None, one[0])):
        suffix = path.suffix.lower()
        if path.name.startswith("."):
            found.left_out["hidden"] += suffix in suffixes() and not path.name.startswith("._")
        elif suffix not in suffixes():
            if _may_be_image(path):
                found.left_out[suffix or "without a suffix"] += 1
        elif real is not None:
            files[real] = path
        elif not os.path.exists(path):
            # An image that cannot be read: that is reported when it is needed.
            files[str(path)] = path
        elif files.setdefault(os.path.realpath(path), path) != path:
            found.again += 1
    found.images, found.left_out = sorted(files.values()), +found.left_out
    return found


def _files(root: Path, found: Found) -> Iterator[tuple[Path, str | None]]:
    """Files with the places where they lie, None for links to files; folders first that are there without a link."""
    real = os.path.realpath(root)
    above = {real, *map(str, Path(real).parents)}
    seen = set(above)
    linked = deque([(root, real)])
    while linked:
        first = linked.popleft()
        if first[1] in seen and first[0] != root:
            # A link to a folder above it leads to nothing new.
            around = first[1] in above or Path(os.path.realpath(first[0].parent)).is_relative_to(first[1])
            found.again += not around
            continue
        folders = deque([first])
        while folders:
            place, own = folders.popleft()
            seen.add(own)
            with os.scandir(place) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
            for entry in listed:
                path, link = Path(entry.path), entry.is_symlink()
                lies = os.path.realpath(path) if link else os.path.join(own, entry.name)
                if os.path.isdir(path) if link else entry.is_dir():
                    if not entry.name.startswith(".") and (link or lies not in seen):
                        (linked if link else folders).append((path, lies))
                elif os.path.exists(path) and not os.path.isfile(path) if link else not entry.is_file():
                    # A pipe: whoever reads it waits for ever.
                    found.left_out["no regular file"] += path.suffix.lower() in suffixes()
                else:
                    yield path, None if link else lies


def _may_be_image(path: Path) -> bool:
    """Whether a file of another suffix is an image all the same, by its kind or its first bytes."""
    kind = KINDS.guess_type(path.name)[0] or ""
    if path.suffix.lower() in OTHER_IMAGES or kind.startswith("image/"):
        return True
    if kind not in ("", "application/octet-stream") or not path.is_file():
        return False
    try:
        with Image.open(path, formats=TELLING):
            return True
    except Exception:  # Pillow's readers fail in as many ways as there are other files
        return False
