"""Open files whose headers may claim any length."""

from __future__ import annotations

import io
import os
from pathlib import Path


class BoundedFile(io.BufferedReader):
    """A file whose ``read`` never allocates more than its size, whatever a header claims."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path), 1 << 16)
        self.bytes = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1) -> bytes:
        """Read at most ``size`` bytes and at most the rest of the file."""
        if size is not None and size > 1 << 16:
            size = max(0, min(size, self.bytes - self.tell()))
        return super().read(size)
