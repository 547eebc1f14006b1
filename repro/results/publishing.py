"""From finished runs to the committed results."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from repro.config import ConfigError
from repro.results.docs import renew
from repro.results.files import add_rows, load_rows, locked, read_rows

if TYPE_CHECKING:
    from repro.paper import Paper


def publish_paper(paper: Paper, runs: Path, results: Path) -> list[dict]:
    """Put a paper's finished rows with default settings, and the kit's that they refer to, into a folder of results.

    Where a preset's model is from the hub, another model and other files of its task may stand in for it. Old rows of
    the preset that were made with other settings leave. Returns the paper's summaries. Raises ConfigError for rows that
    uncommitted code has made, for several models of a preset, and where there is none.
    """
    if paper.slug == "standard":
        raise ConfigError("the kit's arms are published with the papers that refer to them")
    rows = [row for row in read_rows(runs, paper.slug) if row["status"] == "ok" and row["paper"] == paper.slug]
    own: dict[str, list[dict]] = defaultdict(list)
    for row in rows:
        if _by_default(paper, row):
            own[row["preset"]].append(row)
    for preset, mine in own.items():
        if len({row["digest"] for row in mine}) > 1:
            raise ConfigError(f"{preset} runs of {paper.slug} with several models or data folders; publish one of them")
    if not own:
        raise ConfigError(f"no finished runs of {paper.slug} with default settings in {runs}")
    kit = [row for row in read_rows(runs, "standard") if row["status"] == "ok"]
    shared: dict[str, list[dict]] = {}
    for preset, mine in own.items():
        wanted = {(arm, digest) for row in mine for arm, digest in (row.get("standard") or {}).items()}
        shared[preset] = [r for r in kit if r["preset"] == preset and (r["arm"], r["digest"]) in wanted]
        made = [*mine, *shared[preset]]
        changed = [row for row in made if row["machine"]["changed_files"] or not row["machine"]["commit"]]
        if changed:
            raise ConfigError(f"{len(changed)} {preset} runs were made with uncommitted code; commit and run again")
    with locked(results):
        for preset, mine in own.items():
            file = results / paper.slug / f"{preset}.jsonl"
            add_rows(file, mine, lambda row, digest=mine[0]["digest"]: row["digest"] == digest)
            if shared[preset]:
                used = _used(results, preset)
                add_rows(
                    results / "standard" / f"{preset}.jsonl",
                    shared[preset],
                    lambda row, used=used: (row["arm"], row["digest"]) in used,
                )
        card = paper.card()
        card["digests"] |= {preset: mine[0]["digest"] for preset, mine in own.items()}
        summaries = renew(results, {paper.slug: card})
    return [s for s in summaries if s["paper"] == paper.slug]


def _by_default(paper: Paper, row: dict) -> bool:
    """Whether a row has a preset's settings; those of a model from the hub may be another model and data folder."""
    default = paper.config.for_preset(row["preset"])
    if row["digest"] == default.digest():
        return True
    given = {name: row["settings"][name] for name in ("model", "data")}
    return "/" in default.model and row["settings"] == json.loads(json.dumps(asdict(default) | given))


def _used(results: Path, preset: str) -> set[tuple[str, str]]:
    """Arm and digest of the kit's rows that some published paper refers to."""
    files = [file for file in results.glob(f"*/{preset}.jsonl") if file.parent.name != "standard"]
    rows = [row for file in files for row in load_rows(file)]
    return {(arm, digest) for row in rows for arm, digest in (row.get("standard") or {}).items()}
