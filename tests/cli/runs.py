"""Runs that have begun, what lies in them, and the sentence that a mistake leaves."""

import dataclasses
from pathlib import Path

from raydr import recipes
from raydr.storage import Run

STAGES = ("ingest", "ensemble", "finetune", "synthesize", "sweep")


def begun(folder, name="debug", stages=("ingest",), **changes):
    """A run whose recipe is on disk and whose `stages` have begun."""
    from raydr.cluster import pipeline

    target = Run(folder)
    pipeline.open_run(dataclasses.replace(recipes.named(name), **changes), target)
    for stage in stages:
        pipeline.begin(target, stage)
    return target


def content(folder):
    """{path: bytes}; the lock's file comes and goes."""
    files = (path for path in Path(folder).rglob("*") if path.is_file() and path.name != "_lock")
    return {str(path): path.read_bytes() for path in files}


def sentence(printed):
    """The one line that a mistake leaves (a stage's header may stand before it)."""
    lines = [line for line in printed.splitlines() if line.startswith("raydr: ")]
    assert len(lines) == 1, printed
    return lines[0]
