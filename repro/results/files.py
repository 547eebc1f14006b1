"""Result files."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

Group = tuple[str, str, str]  # paper, preset, digest of the settings


def read_results(folder: Path) -> dict[Group, list[dict]]:
    """Every result file below a folder, by paper, preset and settings."""
    groups: dict[Group, list[dict]] = defaultdict(list)
    for file in sorted(folder.rglob("*.json")):
        try:
            result = json.loads(file.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError):
            continue
        if isinstance(result, dict) and {"paper", "arm", "seed", "per_problem"} <= result.keys():
            groups[result["paper"], result["preset"], result["digest"]].append(result)
    return dict(sorted(groups.items()))
