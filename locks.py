"""Work that several processes may want done at once: one does it, the others wait and find it done."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from data import DataError

logger = logging.getLogger("train")


@contextmanager
def alone_with(folder: Path, what: str) -> Iterator[None]:
    """Hold the lock of `folder`, whose parent is made for its owner alone: it is derived from the notes.

    Raises:
        DataError: the parent cannot be made or written.
    """
    parent = folder.parent
    try:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        parent.chmod(0o700)
        lock = FileLock(folder.with_suffix(".lock"), mode=0o600)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            logger.info("  %s: another process is at it in %s; waiting for it", what, parent)
            lock.acquire()
    except OSError as error:
        raise DataError(f"--cache_dir {parent}: {error.strerror}; choose another folder.") from error
    try:
        yield
    finally:
        lock.release()
