"""Very many samples through the real stages, but for what makes the pixels: committed, verified, listed, selected.

10,000 by default. All the figures of 100,000:

    RAYDR_SAMPLES=100000 pytest tests/cluster/test_synthesis_many.py -m slow -s
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import standin

from raydr import schema, shards
from raydr.identity import sha256
from raydr.images import encode
from raydr.lineage import sample_id
from raydr.storage import Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
SAMPLES = int(os.environ.get("RAYDR_SAMPLES", "10000"))
SHARD_SIZE = 64


def raydr(*arguments):
    """(seconds, what it said) of one command in a process of its own; it must succeed."""
    script = Path(__file__).parent / "standin_cli.py"
    started = time.monotonic()
    done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return time.monotonic() - started, done.stdout


def test_many_samples_are_committed_verified_and_selected(ray_temp, tmp_path):
    out, each = str(tmp_path / "out"), SAMPLES // 2
    raydr("ingest", "--recipe", "debug", "--out", out)
    took = {}
    took["synthesize"], said = raydr("synthesize", "--out", out, "--count", str(each), "--shard-size", str(SHARD_SIZE))
    per_generator = -(-each // SHARD_SIZE) * SHARD_SIZE
    assert f"{2 * per_generator} images" in said
    took["verify"], said = raydr("verify", out)
    assert f"{2 * per_generator // SHARD_SIZE + len(shards.commits(Run(out), 'real'))} shards committed" in said
    took["status"], said = raydr("status", out)
    assert str(per_generator) in said
    took["select"], said = raydr("select", out, "--band", "0.7", "0.9", "--ratio", "1", "--grades", "1")
    assert "16 of them synthetic" in said, "grade 1 is filled up from 8 to the 24 of grade 0"
    took["synthesize again"], said = raydr("synthesize", "--out", out)
    assert "finished before" in said
    print({what: round(seconds, 1) for what, seconds in took.items()})

    rows = shards.read(Run(out), "synthetic", schema.SYNTHETIC, ["sample_id", "seed", "sha256", "score"])
    found = {row["sample_id"]: row for row in rows.to_pylist()}
    names = [
        sample_id(generator.generator_id, generator.grades[0], index)
        for generator in standin.GENERATORS
        for index in range(per_generator)
    ]
    assert rows.num_rows == len(names)
    assert sorted(found) == sorted(names)
    for name in names[:: len(names) // 500]:
        row = found[name]
        assert row["sha256"] == sha256(encode(standin.pixels_of(name)))
        assert (row["seed"], row["score"]) == (standin.seed_of(name), standin.score_of(name))
