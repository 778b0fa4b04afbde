"""How much memory this process may use, and giving back what it no longer does."""

import ctypes
import gc
import os
from contextlib import suppress
from pathlib import Path

CGROUP_FILES = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""The container's limit in the versions 2 and 1 of control groups."""
MODELS_SHARE = 0.4
"""The share of the memory that models may take by default; the rest is for the program, bodies and their decoding."""


def memory_limit(files: tuple[Path, ...] = CGROUP_FILES) -> int:
    """Return the bytes of memory of the container, or of the machine where it has no limit."""
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in files:
        with suppress(OSError):
            text = file.read_text().strip()
            if text.isdigit():
                limit = min(limit, int(text))
    return limit


def give_back() -> None:
    """Return freed memory to the system, as glibc does not by itself for arrays of some mebibytes.

    What is left is kept from further collections: each would visit all objects of the libraries, and hold up requests for
    tens of milliseconds.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def mebibytes(size: int) -> str:
    """Return a size as text."""
    return f"{size / 2**20:.1f} MiB"
