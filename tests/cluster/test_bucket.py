"""A whole run in a bucket, its driver killed twice: the same tables, and no credential in anything that was written."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from s3_server import serve

from raydr import schema, shards
from raydr.storage import Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

URL = "s3://bucket/run"
COMMAND = [sys.executable, "-m", "raydr", "run", "--recipe", "debug", "--out", URL]
# As the fixture: weights follow from the number of threads, and those from the CPUs.
COMMAND += ["--shape.num-cpus", "2"]
TABLES = (
    ("real", schema.REAL, ["image_id", "split", "grade", "sha256"]),
    ("synthetic", schema.SYNTHETIC, ["sample_id", "sha256", "score"]),
    ("trials/results", schema.TRIALS, ["trial_id", "arm", "validation_balanced_accuracy", "balanced_accuracy"]),
    ("trials/predictions", schema.PREDICTIONS, ["trial_id", "image_id", "prediction"]),
)
# The driver dies when the first key of this kind is there: inside fine-tuning, and inside the sweep.
DEATHS = (("generators", "_done.json"), ("_commits/trials/results", ".json"))


def rows(run, table, columns, names):
    return Counter(map(repr, shards.read(run, table, columns, names).to_pylist()))


def killed_when(run, folder, ending):
    """Start the command and kill it with all of its Ray once a key of this kind exists; what it said."""
    process = subprocess.Popen(
        COMMAND, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    end, there = time.time() + 300, False
    try:
        while not there and process.poll() is None and time.time() < end:
            time.sleep(1)
            there = any(key.endswith(ending) for key, _ in run.list(folder))
    finally:
        with contextlib.suppress(ProcessLookupError):  # ended by itself, and reaped by poll(): said below
            os.killpg(process.pid, signal.SIGKILL)
        said = process.communicate()[0]
    assert there, f"nothing in {folder} within 300 s:\n{said}"
    return said


def test_two_kills_change_nothing(finished_run, ray_temp):
    with serve():
        run = Run(URL)
        said = "".join(killed_when(run, *death) for death in DEATHS)
        last = subprocess.run(COMMAND, capture_output=True, text=True, timeout=600)
        assert last.returncode == 0, last.stdout + last.stderr
        assert last.stdout.count("finished before") >= 4
        assert shards.verify(run) == []
        theirs = Run(str(finished_run))
        for table, columns, names in TABLES:
            ours = rows(run, table, columns, names)
            assert ours == rows(theirs, table, columns, names), table
            assert max(ours.values()) == 1, f"{table} has doubled rows"
        curves = {key.split("/")[2].split("-")[0] for key, _ in run.list("logs/tensorboard") if "tfevents" in key}
        assert curves >= {"plain"}
        files, root = run.filesystem()  # Ray's own files in _ray have names that `Run.read` does not take
        objects = [files.open_input_stream(f"{root}/{key}").read() for key, size in run.list() if size]
        everything = b"".join(objects) + (said + last.stdout + last.stderr).encode()
        for secret in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            assert os.environ[secret].encode() not in everything, secret
