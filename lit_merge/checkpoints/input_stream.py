"""Files that are read, as Python's libraries read them."""

import io
import os

from lit_merge.checkpoints.input_file import InputFile


class InputStream(io.BufferedReader):
    """A stream that never hands out more bytes than the file has, whatever length is asked for."""

    def __init__(self, file: InputFile) -> None:
        super().__init__(_Raw(file))
        self._size = file.size

    def read(self, size: int | None = -1, /) -> bytes:
        rest = max(0, self._size - self.tell())
        return super().read(rest if size is None or size < 0 else min(size, rest))


class _Raw(io.RawIOBase):
    def __init__(self, file: InputFile) -> None:
        self._file, self._position = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._file.size}[whence]
        if start + offset < 0:
            raise OSError("before the file's beginning")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: object, /) -> int:
        out = memoryview(buffer)[: max(0, self._file.size - self._position)]  # type: ignore[arg-type]
        self._file.read_into(self._position, out, "it")
        self._position += len(out)
        return len(out)
