"""Several nodes on one machine: a node dies in every stage, and the tables are those of an undisturbed run."""

import subprocess
import sys
from collections import Counter

import pytest
from nodes import several

from raydr import schema, shards
from raydr.storage import Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TABLES = (
    ("real", schema.REAL, ["image_id", "split", "grade", "sha256"]),
    ("synthetic", schema.SYNTHETIC, ["sample_id", "sha256", "score"]),
    ("trials/results", schema.TRIALS, ["trial_id", "arm", "validation_balanced_accuracy", "balanced_accuracy"]),
    ("trials/predictions", schema.PREDICTIONS, ["trial_id", "image_id", "prediction"]),
)
# What runs in a stage, by the name that Ray gives its process, and how long after its start the node dies.
WORK = {
    "ingest": ("MapBatches(", 0.0),
    "ensemble": ("train_member", 0.5),
    "finetune": ("RayTrainWorker", 3.0),
    "synthesize": ("MapWorker", 1.0),
    "sweep": ("ImplicitFunc", 1.0),
}


def rows(out, table, columns, names):
    """The rows of a table as a multiset."""
    return Counter(map(repr, shards.read(Run(str(out)), table, columns, names).to_pylist()))


def test_a_node_dies_in_every_stage_of_a_job(finished_run, tmp_path):
    out = tmp_path / "out"
    with several(2) as nodes:
        command = ["submit", "run", "--address", nodes.url, "--recipe", "debug", "--out", str(out), "--shape", "laptop"]
        job = subprocess.Popen(
            # From elsewhere: `python -m` puts its folder before PYTHONPATH.
            [sys.executable, "-m", "raydr", *command], env=nodes.environment, cwd=tmp_path,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        died = []
        try:
            for title, seconds in WORK.values():
                died.append(nodes.kill(title, seconds, patience=240))
                nodes.add()
            said, _ = job.communicate(timeout=400)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            job.kill()
            raise AssertionError(f"{error}\n{job.communicate()[0]}") from None
        assert job.returncode == 0, said
        assert len(set(died)) == len(WORK)
        verified = nodes.raydr(["verify", str(out)])
        assert verified.returncode == 0, verified.stdout
    for table, columns, names in TABLES:
        ours, theirs = rows(out, table, columns, names), rows(finished_run, table, columns, names)
        assert ours == theirs, table
        assert max(ours.values()) == 1, f"{table} has doubled rows"
