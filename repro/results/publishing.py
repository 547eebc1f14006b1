"""From finished runs to the committed results."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from repro.config import ConfigError
from repro.results.docs import renew
from repro.results.files import add_rows, load_rows, locked, read_rows

if TYPE_CHECKING:
    from repro.paper import Paper


def publish_paper(paper: Paper, runs: Path, results: Path) -> list[dict]:
    """Put a paper's finished rows with default settings, and the kit's that they refer to, into a folder of results.

    Old rows of the preset that were made with other settings leave. Returns the paper's summaries. Raises
    ConfigError for rows that uncommitted code has made, and where there is none.
    """
    if paper.slug == "standard":
        raise ConfigError("the kit's arms are published with the papers that refer to them")
    rows = [row for row in read_rows(runs, paper.slug) if row["status"] == "ok" and row["paper"] == paper.slug]
    own: dict[str, list[dict]] = defaultdict(list)
    for row in rows:
        if row["digest"] == paper.config.for_preset(row["preset"]).digest():
            own[row["preset"]].append(row)
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
        summaries = renew(results, {paper.slug: paper.card()})
    return [s for s in summaries if s["paper"] == paper.slug]


def _used(results: Path, preset: str) -> set[tuple[str, str]]:
    """Arm and digest of the kit's rows that some published paper refers to."""
    files = [file for file in results.glob(f"*/{preset}.jsonl") if file.parent.name != "standard"]
    rows = [row for file in files for row in load_rows(file)]
    return {(arm, digest) for row in rows for arm, digest in (row.get("standard") or {}).items()}
