"""Rows (one arm with one seed each) in files: a run's ``result.json``, and ``results/PAPER/PRESET.jsonl``.

Each line of a JSON-lines file is one JSON object. The first holds what rows share ({"shared": {name: value}}: settings,
machine, ...), all others are rows: ``row["settings"]`` is the name of a shared value, the history is a list per column,
and values of the problems that are few different ones are written with one character a problem (``pack``). These are
kept as they were; all other numbers with six digits.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import string
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SHARED = ("settings", "model", "data", "machine", "standard")
ALPHABET = string.digits + string.ascii_letters
LEFT_OUT = None  # in a column of the history: that step doesn't have it


def pack(per_problem: dict[str, list[float]]) -> dict[str, dict | list[float]]:
    """Values of the problems, by metric, in few characters; ``unpack`` gives them back as they were.

    {"values": [...], "at": "0102..."}: the different values and the place of each problem's among them.
    {"values": [...], "of": NAME}: a function of another metric: the values for the places of that one.
    """
    packed: dict[str, dict | list[float]] = {}
    for name, row in per_problem.items():
        values = sorted(set(row))
        if len(values) > len(ALPHABET) or any(str(v) == "-0.0" for v in values):
            packed[name] = row
            continue
        at = "".join(ALPHABET[values.index(v)] for v in row)
        values = [int(v) if float(v).is_integer() else v for v in values]
        packed[name] = {"values": values, "at": at}
        for other, entry in packed.items():
            if other == name or isinstance(entry, list) or len(entry.get("at", "")) != len(at):
                continue
            pairs = sorted(set(zip(entry["at"], at, strict=True)), key=lambda pair: ALPHABET.index(pair[0]))
            if len(pairs) == len(entry["values"]):
                packed[name] = {"values": [values[ALPHABET.index(mine)] for _, mine in pairs], "of": other}
                break
    return packed


def unpack(packed: dict[str, dict | list[float]]) -> dict[str, list[float]]:
    """What was given to ``pack``."""
    found = {}
    for name, entry in packed.items():
        if isinstance(entry, list):
            found[name] = entry
        else:
            at = entry["at"] if "at" in entry else packed[entry["of"]]["at"]
            values = dict(zip(ALPHABET, entry["values"], strict=False))
            found[name] = [values[place] for place in at]
    return found


def _columns(history: Sequence[dict]) -> dict[str, list]:
    names = dict.fromkeys(name for step in history for name in step)
    return {name: [step.get(name, LEFT_OUT) for step in history] for name in names}


def _steps(columns: dict[str, list]) -> list[dict]:
    rows = zip(*columns.values(), strict=True)
    return [{k: v for k, v in zip(columns, row, strict=True) if v is not LEFT_OUT} for row in rows]


def _short(value: object) -> object:
    """Numbers in six digits, whole ones without a point."""
    if isinstance(value, float):
        value = float(f"{value:.6g}")
        return int(value) if value.is_integer() else value
    if isinstance(value, dict):
        return {k: _short(v) for k, v in value.items()}
    return [_short(v) for v in value] if isinstance(value, list) else value


def dump_rows(rows: Sequence[dict]) -> str:
    """The lines of a file of rows, by arm and seed."""
    shared: dict[str, object] = {}
    lines = []
    for row in sorted(rows, key=lambda r: (r["paper"], r["preset"], r["arm"], r["seed"], r["digest"])):
        line = dict(row)
        for key in SHARED:
            if row.get(key):
                name = hashlib.sha256(json.dumps([key, row[key]], sort_keys=True).encode()).hexdigest()[:8]
                shared[name], line[key] = row[key], name
        line["history"] = _columns(row["history"])
        values = pack(line.pop("per_problem"))
        lines.append({**_short(line), "per_problem": values})
    head = [{"shared": dict(sorted(shared.items()))}] if lines else []
    return "".join(json.dumps(line, separators=(",", ":"), ensure_ascii=False) + "\n" for line in [*head, *lines])


def load_rows(file: Path) -> list[dict]:
    """The rows of a JSON-lines file. Raises ConfigError that names the line that isn't one."""
    shared: dict[str, object] = {}
    rows = []
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                if "shared" in entry:
                    shared |= entry["shared"]
                    continue
                row = entry | {key: shared[entry[key]] for key in SHARED if isinstance(entry.get(key), str)}
                rows.append(row | {"per_problem": unpack(entry["per_problem"]), "history": _steps(entry["history"])})
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                from repro.config import ConfigError  # it takes longer to import than a list to print

                raise ConfigError(f"{file}:{number}: not a row of results ({error!r})") from None
    return rows


def read_rows(folder: Path, slug: str = "*") -> list[dict]:
    """All rows below a folder: of files of rows (FOLDER/PAPER/PRESET.jsonl) and of runs (.../result.json)."""
    rows = [row for file in sorted(folder.glob(f"{slug}/*.jsonl")) for row in load_rows(file)]
    for file in sorted(folder.glob(f"{slug}/*/*/result.json")):
        try:
            row = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            continue  # of a run that is being written
        if isinstance(row, dict) and {"paper", "arm", "seed", "per_problem"} <= row.keys():
            rows.append(row)
    return rows


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder of results: another process waits until it is let go."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def replace_file(path: Path, content: str | bytes) -> None:
    """Write a file that then takes the place of ``path``: a reader sees the old one or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex}.new")
    try:
        with open(new, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def add_rows(file: Path, rows: Sequence[dict], keep: Callable[[dict], bool] = lambda row: True) -> list[dict]:
    """Put rows into a file in place of those of the same arm, seed and digest; ``keep`` says which old ones stay.

    Call it within ``locked``. Returns all rows of the file.
    """

    def key(row: dict) -> tuple:
        return row["arm"], row["seed"], row["digest"]

    old = [row for row in load_rows(file) if keep(row)] if file.exists() else []
    every = list(({key(row): row for row in old} | {key(row): row for row in rows}).values())
    replace_file(file, dump_rows(every))
    return every


def read_summaries(folder: Path, slugs: Sequence[str] = ()) -> list[dict]:
    """The stored summaries of a folder of results, tiny presets first; only of the papers named."""
    files = [file for file in folder.glob("*/*.json") if not slugs or file.parent.name in slugs]
    found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(files)]
    return sorted(found, key=lambda s: (s["preset"] != "tiny", s["preset"], s["paper"]))
