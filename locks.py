"""Work that several processes may want done at once: one does it, the others wait and find it done, or are refused."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from data import DataError

logger = logging.getLogger("train")


class FolderError(ValueError):
    """The folder of a run cannot be used; nothing was written there, and nothing should be."""


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder, which is made if there is none: two runs would take each other's checkpoints.

    Raises:
        FolderError: another process holds it, or the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(blocking=False)
    except Timeout:
        raise FolderError(
            f"--output_dir {folder}: another run is at work there; wait for it, or choose another folder."
        ) from None
    except OSError as error:
        raise FolderError(
            f"--output_dir {folder}: cannot be written ({error.strerror}); choose another folder."
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def alone_with(folder: Path, what: str) -> Iterator[None]:
    """Hold the lock of `folder`. A parent that it makes is for its owner alone: it will be derived from the notes.

    Raises:
        DataError: the parent cannot be made or written.
    """
    parent = folder.parent
    try:
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
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
