"""Runs on a Slurm cluster: one array script of what is missing, and what the cluster says of it.

``repro run PAPER [settings] --slurm [options of sbatch]``. Slurm does the scheduling; every element of the array is
the plain command of one arm and seed, which goes on from its checkpoint wherever it was stopped. Design: ours.
"""

from __future__ import annotations

import math
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from repro.config import ConfigError

START, MARGIN, ROOM = 5, 4, 1.5  # minutes to load; of the time and the memory that were measured on another machine
SCRIPT = """\
#!/bin/bash
{options}
folders=(
{folders}
)
commands=(  # each can be given to a shell
{commands}
)
cd {here}
export OMP_NUM_THREADS=${{SLURM_CPUS_PER_TASK:-1}}
again() {{  # the time is nearly over: go on in a new turn
  kill -- -"$child"
  exec scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
}}
trap again USR1
setsid bash -c "${{commands[$SLURM_ARRAY_TASK_ID]}}" &
child=$!
wait "$child"
"""


@dataclass(frozen=True)
class Element:
    """One element of the array: the run folder it makes (first), the words of its commands behind ``repro``, and what
    it cost where it was measured: seconds and bytes, 0 if never."""

    folder: Path
    commands: tuple[tuple[str, ...], ...]
    seconds: float = 0
    bytes: float = 0


def split_words(argv: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """Words before ``--slurm``, and the options of sbatch behind it (None without it); --dry-run is ours anywhere."""
    if "--slurm" not in argv:
        return list(argv), None
    at = list(argv).index("--slurm")
    own, given = [*argv[:at]], [*argv[at + 1 :]]
    if "--dry-run" in given:
        given.remove("--dry-run")
        own.append("--dry-run")
    if given and not given[0].startswith("-"):
        raise ConfigError(f"--slurm {given[0]}: options of sbatch come behind --slurm, settings before it")
    if clash := [word for word in given if word.startswith(("--array", "-a", "--wrap"))]:
        raise ConfigError(f"--slurm {clash[0]}: the kit makes the array; --workers N says how many run side by side")
    return own, given


def limits(elements: Sequence[Element]) -> list[str]:
    """Time and memory to ask for, from the dearest element; nothing where one was never measured."""
    seconds, size = ([getattr(e, name) for e in elements] for name in ("seconds", "bytes"))
    asked = [f"--time={START + math.ceil(MARGIN * max(seconds) / 60)}"] if all(seconds) else []
    return [*asked, f"--mem={math.ceil(ROOM * max(size) / 2**20)}M"] if all(size) else asked


def array_script(name: str, elements: Sequence[Element], out: Path, given: Sequence[str] = (), most: int = 0) -> str:
    """The script. ``given``: the user's options, which win over the kit's; ``most``: elements side by side, 0: all."""
    options = [
        f"--job-name={name}",
        f"--array=0-{len(elements) - 1}" + (f"%{most}" if most else ""),
        "--cpus-per-task=1",
        *limits(elements),
        "--requeue",
        "--signal=B:USR1@60",
        "--open-mode=append",
        f"--output={out / 'slurm' / '%A_%a.log'}",
    ]
    python = (sys.executable, "-m", "repro.cli")
    commands = [" && ".join(shlex.join([*python, *words]) for words in element.commands) for element in elements]
    return SCRIPT.format(
        options="\n".join(f"#SBATCH {shlex.join(words)}" for words in (*([o] for o in options), given) if words),
        folders="\n".join(f"  {shlex.quote(str(element.folder))}" for element in elements),
        commands="\n".join(f"  {shlex.quote(command)}" for command in commands),
        here=shlex.quote(str(Path.cwd())),
    )


def submit(script: str, out: Path) -> str:
    """Hand the script to sbatch, keep it as OUT/slurm/JOB.sh, and return the number of the job."""
    if not shutil.which("sbatch"):
        raise ConfigError("--slurm: there is no sbatch on this machine; --dry-run prints the script")
    folder = out / "slurm"
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["sbatch", "--parsable"], input=script, capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(
            f"--slurm: {(done.stderr.strip() or f'sbatch: exit code {done.returncode}').splitlines()[-1]}"
        )
    job = done.stdout.strip().partition(";")[0]
    (folder / f"{job}.sh").write_text(script)
    return job


def folders_of(script: str) -> list[str]:
    """The run folders that a script names, in the array's order."""
    return shlex.split(script.partition("folders=(")[2].partition("\n)\n")[0])


def in_the_queue(out: Path) -> dict[Path, str]:
    """Run folders below ``out`` that Slurm knows of, with the state it gives: PENDING, RUNNING, ..."""
    scripts = {file.stem: file for file in out.glob("slurm/*.sh")}
    if not scripts or not shutil.which("squeue"):
        return {}
    words = ["squeue", "--noheader", "--array", "--format=%F %K %T"]
    lines = subprocess.run(words, capture_output=True, text=True).stdout.splitlines()
    found = {}
    for job, element, state in (line.split() for line in lines):
        if job in scripts:
            found[Path(folders_of(scripts[job].read_text())[int(element)])] = state
    return found
