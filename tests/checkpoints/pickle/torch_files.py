"""Files as torch.save makes them, around a pickle of one's own."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

from lit_merge.checkpoints.torch_file import MAGIC


def write_zip(path: Path, pickled: bytes, storages: Mapping[str, bytes] | None = None, method: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        for key, values in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", values)
    return path


def write_legacy(path: Path, pickled: bytes) -> Path:
    start = [MAGIC, 1001, {"protocol_version": 1001, "little_endian": True}]
    parts = [*(pickle.dumps(part, protocol=2) for part in start), pickled, pickle.dumps([], protocol=2)]
    path.write_bytes(b"".join(parts))
    return path


def tensor(
    size: str = "K\x02\x85", offset: str = "K\x00", numel: str = "K\x02", key: str = "X\x01\x00\x00\x000"
) -> bytes:
    """Opcodes of a float32 tensor on storage 0, of shape (2,), with parts of one's own."""
    storage = f"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n{key}X\x03\x00\x00\x00cpu{numel}tQ"
    text = f"ctorch._utils\n_rebuild_tensor_v2\n({storage}{offset}{size}K\x01\x85\x89ccollections\nOrderedDict\n)RtR"
    return text.encode("latin-1")


def state_dict(value: bytes, name: str = "w") -> bytes:
    """A pickle of {name: value}."""
    key = b"X" + len(name.encode()).to_bytes(4, "little") + name.encode()
    return b"\x80\x02}" + key + value + b"s."
