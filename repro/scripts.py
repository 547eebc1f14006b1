"""The scripts in papers/, by name."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from repro.config import ConfigError

if TYPE_CHECKING:
    from repro.paper import Paper

ROOT = Path(__file__).parent.parent
ALIASES = {"int": "intervention"}  # names of papers that are no good module names
STANDARD = Path(__file__).parent / "methods" / "standard.py"


def paper_scripts() -> dict[str, Path]:
    """Script of each paper by its name."""
    return {p.stem: p for p in sorted((ROOT / "papers").glob("*.py"))}


def find_script(name: str) -> Path:
    """The script that a name or alias stands for, "standard" for the kit's arms. Raises ConfigError for no such."""
    known = {**paper_scripts(), "standard": STANDARD}
    if (found := known.get(ALIASES.get(name, name))) is None:
        raise ConfigError(f"unknown paper {name!r}; there are {', '.join(known)}")
    return found


def load_script(path: Path) -> Paper:
    """The PAPER of a script."""
    if path == STANDARD:
        return importlib.import_module("repro.methods.standard").PAPER
    spec = importlib.util.spec_from_file_location(f"papers.{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.PAPER
