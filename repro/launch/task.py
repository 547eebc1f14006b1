"""One arm with one seed, as the launcher sees it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from repro.arm import run_folder

if TYPE_CHECKING:
    from repro.config import RunConfig
    from repro.paper import Paper


@dataclass(frozen=True)
class Task:
    """One arm with one seed."""

    script: Path
    paper: Paper
    config: RunConfig
    arm: str
    seed: int
    out: str

    @property
    def name(self) -> str:
        return f"{self.paper.slug}/{self.arm} seed {self.seed}"

    @property
    def folder(self) -> Path:
        return run_folder(self.paper, self.config, self.arm, self.seed, self.out)

    def finished(self) -> bool:
        """Is there a result that needn't be made again?"""
        file = self.folder / "result.json"
        return file.exists() and json.loads(file.read_text())["status"] == "ok"
