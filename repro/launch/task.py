"""One arm with one seed, as the launcher sees it: plain data that a process can be given."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Task:
    """One arm with one seed. ``needs``: the folder of another task that has to be finished before."""

    script: Path
    paper: str
    arm: str
    seed: int
    settings: dict
    folder: Path
    out: str
    needs: Path | None = None

    @property
    def name(self) -> str:
        return f"{self.paper}/{self.arm} seed {self.seed}"

    @property
    def digest(self) -> str:
        """What names its settings, in eight hexadecimal digits."""
        return self.folder.parent.name.rpartition("-")[2]

    @property
    def job(self) -> tuple:
        """Arguments of ``repro.arm.work``."""
        return self.script, self.settings, self.arm, self.seed, self.out

    def finished(self) -> bool:
        """Is there a result that needn't be made again?"""
        file = self.folder / "result.json"
        return file.exists() and json.loads(file.read_text())["status"] == "ok"
