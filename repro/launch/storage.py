"""Files of a run that survive a kill, a full disk, and a second process."""

from __future__ import annotations

import fcntl
import os
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

CHECKPOINT, BEFORE, LOCK = "checkpoint.pt", "checkpoint-before.pt", "lock"


class RunFolderInUse(RuntimeError):
    """Another process is at work in a run folder."""


def write_atomically(path: Path, write: Callable) -> None:
    """Call ``write(file)`` on a new file that then replaces ``path``; after an error ``path`` is as it was."""
    new = path.with_name(f"{path.name}.{uuid.uuid4().hex}.new")  # two processes, or machines, may write the same file
    try:
        with open(new, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def save_checkpoint(folder: Path, content: dict) -> None:
    """Write a checkpoint and keep the one before it: at any moment one of them is whole."""
    last = folder / CHECKPOINT
    if last.exists():
        before = folder / f"{BEFORE}.new"
        before.unlink(missing_ok=True)
        os.link(last, before)  # a second name: no moment without a checkpoint
        before.replace(folder / BEFORE)
    write_atomically(last, lambda file: torch.save(content, file))


def load_checkpoint(folder: Path, warn: Callable[[str], None]) -> dict | None:
    """The newest checkpoint that can be read, None where there is none; a damaged one is named in a warning."""
    for name in (CHECKPOINT, BEFORE):
        file = folder / name
        if file.exists():
            try:
                with zipfile.ZipFile(file) as archive:  # torch.load doesn't compare the checksums
                    if damaged := archive.testzip():
                        raise zipfile.BadZipFile(damaged)
                return torch.load(file, map_location="cpu", weights_only=True)  # the GPU may be elsewhere
            except Exception:  # damaged bytes can raise anything
                warn(f"{file} is damaged; going on from {'the one before' if name == CHECKPOINT else 'the beginning'}")
    return None


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Hold a run folder. Raises RunFolderInUse while another process holds it; a killed process lets go."""
    with open(folder / LOCK, "w") as file:
        for pause in (0.1, 0.4, None):  # ``in_use`` holds it for a moment
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if pause is None:
                    raise RunFolderInUse(f"another process is at work in {folder}") from None
                time.sleep(pause)
        yield


def in_use(folder: Path) -> bool:
    """Is a process at work in a run folder?"""
    if not (folder / LOCK).exists():
        return False
    with open(folder / LOCK) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
