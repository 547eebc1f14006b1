"""The built-in tiny model: see README.md beside this file."""

from pathlib import Path

MODEL = Path(__file__).parent / "model"
