"""Whatever dies, hangs, raises or fills up during synthesis: the committed rows are the plan's, each once.

Everything is real but what makes the pixels (standin.py), so that a case takes seconds.
"""

import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import standin
from nodes import several

from raydr import cli, schema, shapes, shards
from raydr.errors import DamagedData
from raydr.identity import sha256
from raydr.images import encode
from raydr.lineage import sample_id
from raydr.storage import Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SCRIPT = Path(__file__).parent / "standin_cli.py"
KILLS = 3
SIZE = 8  # images of a shard in the debug recipe
PLAIN, ECC = (generator.generator_id for generator in standin.GENERATORS)


def command(out, *options, count=32):
    mine = ["synthesize", "--recipe", "debug", "--out", str(out), "--count", str(count), *options]
    return [sys.executable, str(SCRIPT), *mine]


def die_with_parent():
    """In the child: a test run that is killed leaves no driver behind (PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def start(out, *options, count=32, **environment):
    return subprocess.Popen(
        command(out, *options, count=count), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment, start_new_session=True,
        preexec_fn=die_with_parent,
    )  # fmt: skip


def end(process, seconds=400):
    """(exit code, what it said with its lines joined); a driver that hangs is killed and fails the test."""
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        kill(process)
        raise
    return process.returncode, " ".join(said.split())


def kill(process):
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def synthesize(out, *options, count=32, **environment):
    return end(start(out, *options, count=count, **environment))


def made(out, *options, count=32):
    """Synthesize undisturbed, to the end."""
    code, said = synthesize(out, *options, count=count)
    assert code == 0, said


def behave(out, **how):
    out.mkdir(parents=True, exist_ok=True)
    (out / "standin.json").write_text(json.dumps(how))


@contextmanager
def held(out, **how):
    """What is in flight inside stays in flight, however long a busy machine takes for what is done meanwhile."""
    behave(out, **how)
    (out / "hold").touch()
    try:
        yield
    finally:
        (out / "hold").unlink()


def planned(count=32, without=()):
    """The plan as a multiset of (sample id, seed, pixels, score)."""
    found = Counter()
    for generator, grade in ((PLAIN, 1), (ECC, 3)):
        for index in range(count):
            name = sample_id(generator, grade, index)
            if name not in without:
                digest = sha256(encode(standin.pixels_of(name)))
                found[name, standin.seed_of(name), digest, standin.score_of(name)] += 1
    return found


def committed(out):
    rows = shards.read(Run(str(out)), "synthetic", schema.SYNTHETIC, ["sample_id", "seed", "sha256", "image", "score"])
    for row in rows.to_pylist():
        assert sha256(row["image"]) == row["sha256"]
    return Counter((row["sample_id"], row["seed"], row["sha256"], row["score"]) for row in rows.to_pylist())


def commits(out):
    return shards.commits(Run(str(out)), "synthetic")


def until(condition, seconds=300, every=0.02):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it never came to that"
        time.sleep(every)


def workers(process, name):
    """The worker processes of a driver's Ray whose title holds `name`."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if name in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def kill_one(process, name, chance):
    """SIGKILL one of a driver's workers with that name as soon as there is one; False where the driver ended first."""
    while process.poll() is None:
        here = workers(process, name)
        if here:
            chance.choice(here).kill()
            return True
        time.sleep(0.02)
    return False


@contextmanager
def polling_reader(out):
    """Reads the table and every shard file again and again; yields what it has seen: row counts, or what was wrong."""
    done, seen, wrong = threading.Event(), [], []

    def poll():
        while not done.wait(0.02):
            try:
                seen.append(shards.read(Run(str(out)), "synthetic", schema.SYNTHETIC, required=False).num_rows)
                files = list(out.glob("synthetic/*/*"))
                wrong.extend(file for file in files if pq.read_table(file).num_rows != SIZE)
            except (DamagedData, OSError, ValueError) as error:
                wrong.append(error)

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield seen, wrong
    finally:
        done.set()
        thread.join()


def test_the_driver_is_killed_again_and_again(ray_temp, tmp_path):
    """With everything it started, in the middle of shards; every start counts for nothing afterwards."""
    out, chance = tmp_path / "out", random.Random()
    behave(out, seconds=1.0)
    for _ in range(KILLS):
        process, before = start(out, "--max-starts", "1", count=64), len(commits(out))
        until(lambda process=process, before=before: len(commits(out)) > before or process.poll() is not None)
        time.sleep(chance.uniform(0, 1.0))
        assert process.poll() is None, end(process)
        kill(process)
    code, said = synthesize(out, "--max-starts", "1", count=64)
    assert code == 0, said
    assert committed(out) == planned(64)
    assert shards.verify(Run(str(out))) == []
    assert shards.quarantined(Run(str(out)), "synthetic") == []


def test_generators_sinks_and_the_quota_are_killed(ray_temp, tmp_path):
    """Ten of them at random moments in one run, which goes on; a reader that polls never sees half a file."""
    out, chance = tmp_path / "out", random.Random()
    behave(out, seconds=0.8, sink_seconds=0.6)
    process = start(out, "--max-starts", "20", count=256)
    died = Counter()
    with polling_reader(out) as (seen, wrong):
        until(lambda: commits(out))
        for title in ["Generate", "commit_shard", "Quota", "Generate", "commit_shard"] * 2:
            time.sleep(chance.uniform(0.2, 1.5))
            died[title] += kill_one(process, title, chance)
        code, said = end(process)
    assert code == 0, said
    assert died == {"Generate": 4, "commit_shard": 4, "Quota": 2}
    assert committed(out) == planned(256)
    assert shards.verify(Run(str(out))) == []
    assert wrong == []
    assert seen == sorted(seen)
    assert len(set(seen)) > 3, "the reader slept"


def test_scorers_of_a_pool_of_their_own_are_killed(ray_temp, tmp_path):
    """As the generators are; no start of theirs counts for a generator, and the rows are those of scoring in place."""
    out, chance = tmp_path / "out", random.Random()
    behave(out, seconds=0.4, score_seconds=0.8)
    apart = ["--shape.scorers", "1", "--shape.scorer-cpus", "0.5"]
    process = start(out, "--max-starts", "20", *apart, count=96)
    died = Counter()
    until(lambda: commits(out) or process.poll() is not None)
    for title in ["Score)", "Generate", "Score)", "Quota", "Score)"]:
        time.sleep(chance.uniform(0.2, 1.5))
        died[title] += kill_one(process, title, chance)
    code, said = end(process)
    assert code == 0, said
    assert died == {"Score)": 3, "Generate": 1, "Quota": 1}
    assert committed(out) == planned(96)
    assert shards.verify(Run(str(out))) == []
    assert shards.quarantined(Run(str(out)), "synthetic") == []


def test_what_scorers_cannot_score_is_quarantined(ray_temp, tmp_path):
    out = tmp_path / "out"
    raises, crashes = sample_id(PLAIN, 1, 13), sample_id(ECC, 3, 5)
    behave(out, score_raise=[raises], score_crash=[crashes])
    code, said = synthesize(out, "--shape.scorers", "1", "--shape.scorer-cpus", "0.5")
    assert code == 1, said
    assert "9 of 64 images are in quarantine" in said
    notes = {note["key"]: note for note in shards.quarantined(Run(str(out)), "synthetic")}
    crashed = f"synthetic/{ECC}/g3-000000.parquet"
    assert {key: note["reason"] for key, note in notes.items()} == {raises: "raised", crashed: "crashed"}
    assert "its scorer ended 3 times" in notes[crashed]["detail"]
    lost = {raises, *(sample_id(ECC, 3, i) for i in range(8))}
    assert committed(out) == planned(without=lost)


@pytest.mark.parametrize("pools", [("1", "1"), ("2", "1"), ("2", "0")])
def test_a_quota_accepts_the_same_images_whatever_the_pools(pools, ray_temp, tmp_path):
    """--accepted through the whole stream: the accepted set is the prefix's, however many generators raced."""
    out, wanted = tmp_path / "out", 6
    behave(out, seconds=0.3)
    generators, scorers = pools
    shape = ["--shape.generators", generators, "--shape.scorers", scorers]
    code, said = synthesize(out, "--accepted", str(wanted), "--band", "0.7", "0.9", *shape, count=8)
    assert code == 0, said
    record = Run(str(out)).read_json("logs/stage-synthesize.json")["summary"]["targets"]
    assert [(row["shards"], row["accepted"]) for row in record] == [prefix(PLAIN, 1, wanted), prefix(ECC, 3, wanted)]
    assert all(row["met"] for row in record)
    # What an arm takes, the first in the band in the order of their indices, is there without a gap.
    there = {name for name, *_ in committed(out)}
    for generator, grade in ((PLAIN, 1), (ECC, 3)):
        num_shards, _ = prefix(generator, grade, wanted)
        assert {sample_id(generator, grade, index) for index in range(SIZE * num_shards)} <= there


def prefix(generator, grade, wanted):
    """(shards, accepted) of the shortest run of whole shards that holds `wanted` images in the band, by hand."""
    number = accepted = 0
    while accepted < wanted:
        names = [sample_id(generator, grade, index) for index in range(SIZE * number, SIZE * (number + 1))]
        accepted += sum(0.7 <= standin.score_of(name) <= 0.9 for name in names)
        number += 1
    return number, accepted


@pytest.mark.parametrize("name", ["before_fsync", "after_write", "after_link", "before_commit", "after_commit"])
def test_every_process_dies_at_every_third_write(name, ray_temp, tmp_path):
    """At each failpoint around a write: sinks die, and where it writes starts down, so does the quota."""
    out, before = tmp_path / "out", set(ray_temp.glob("session_*"))
    code, said = synthesize(out, "--max-starts", "50", count=64, RAYDR_FAILPOINT=f"{name}:exit:3")
    for _ in range(9):  # the driver writes too, and dies of it
        if code != 137:
            break
        code, said = synthesize(out, "--max-starts", "50", count=64, RAYDR_FAILPOINT=f"{name}:exit:3")
    if code == 137:
        code, said = synthesize(out, "--max-starts", "50", count=64)
    assert code == 0, said
    assert committed(out) == planned(64)
    assert shards.verify(Run(str(out))) == []
    ours = [folder for folder in ray_temp.glob("session_*") if folder not in before and not folder.is_symlink()]
    logs = "".join(file.read_text(errors="replace") for folder in ours for file in folder.glob("logs/worker-*.err"))
    assert logs.count(f"failpoint {name}") >= 1, "no process died"


def test_poison_is_quarantined_with_its_reason_and_the_rest_is_made(ray_temp, tmp_path):
    """One row raises, one ends its process with SIGSEGV, one hangs: three reasons, and the exit code says so."""
    out = tmp_path / "out"
    raises, crashes, hangs = sample_id(PLAIN, 1, 13), sample_id(ECC, 3, 5), sample_id(PLAIN, 1, 30)
    behave(out, **{"raise": [raises], "crash": [crashes], "hang": [hangs]})
    code, said = synthesize(out, "--hang-seconds", "2")
    assert code == 1, said
    assert "17 of 64 images are in quarantine" in said
    notes = {note["key"]: note for note in shards.quarantined(Run(str(out)), "synthetic")}
    crashed, hung = f"synthetic/{ECC}/g3-000000.parquet", f"synthetic/{PLAIN}/g1-000003.parquet"
    assert {key: note["reason"] for key, note in notes.items()} == {raises: "raised", crashed: "crashed", hung: "hung"}
    assert f"RuntimeError: poison in {raises}" in notes[raises]["detail"]
    assert "its process ended 3 times" in notes[crashed]["detail"]
    assert "no step was finished for 2 s" in notes[hung]["detail"]
    lost = {raises, *(sample_id(ECC, 3, i) for i in range(8)), *(sample_id(PLAIN, 1, i) for i in range(24, 32))}
    assert committed(out) == planned(without=lost)
    code, said = synthesize(out, "--max-quarantine", "0.5")
    assert code == 0, said
    assert committed(out) == planned(without=lost)


def test_what_crashes_or_hangs_once_is_made(ray_temp, tmp_path):
    out = tmp_path / "out"
    behave(out, crash=[sample_id(PLAIN, 1, 3)], hang=[sample_id(ECC, 3, 20)], once=True)
    code, said = synthesize(out, "--hang-seconds", "2")
    assert code == 0, said
    assert committed(out) == planned()
    assert shards.quarantined(Run(str(out)), "synthetic") == []


def test_a_generator_that_always_raises_ends_the_stage(ray_temp, tmp_path):
    """It is not the rows: after a few shards nothing more is tried."""
    out = tmp_path / "out"
    behave(out, **{"raise": [sample_id(name, grade, i) for name, grade in ((PLAIN, 1), (ECC, 3)) for i in range(256)]})
    code, said = synthesize(out, "--max-starts", "1", count=256)
    assert code == 1, said
    assert "shards were lost and 0 made" in said
    assert "RuntimeError: poison in" in said
    # What was in flight when the third was lost is not blamed on top.
    assert len(shards.quarantined(Run(str(out)), "synthetic")) == 3


def test_a_full_disk_is_one_sentence_and_resumes(ray_temp, tmp_path):
    out = tmp_path / "out"
    made(out)
    before = committed(out)
    code, said = synthesize(out, count=128, RAYDR_FAILPOINT="before_fsync:enospc:6")
    assert code == 2, said
    assert "the disk is full" in said
    assert "Traceback" not in said
    assert before < committed(out) or before == committed(out)
    code, said = synthesize(out, count=128)
    assert code == 0, said
    assert committed(out) == planned(128)


def test_damage_is_found_and_made_again_and_other_settings_are_refused(ray_temp, tmp_path, capsys):
    out = tmp_path / "out"
    made(out)
    one, two, three, *_ = sorted((out / "synthetic").rglob("*.parquet"))
    one.write_bytes(one.read_bytes()[:-100])
    two.unlink()
    data = bytearray(three.read_bytes())
    data[len(data) // 2] ^= 1
    three.write_bytes(data)
    assert cli.main(["verify", str(out)]) == 1
    assert cli.main(["repair", str(out)]) == 0
    assert not one.exists()
    assert not three.exists()
    capsys.readouterr()
    code, said = synthesize(out, "--sampler.guidance", "3.5")
    assert code == 2
    assert "synthesize.sampler" in said
    assert "'guidance': 3.5" in said
    assert "'guidance': 2.0" in said
    assert not one.exists()
    code, said = synthesize(out)
    assert code == 0, said
    assert committed(out) == planned()
    assert cli.main(["verify", str(out)]) == 0


def test_two_drivers(ray_temp, tmp_path):
    """The second is refused; two that do not mind each other, at work on the same shards, make every shard once."""
    out = tmp_path / "out"
    with held(out, seconds=0.5):
        first = start(out, count=64)
        until(lambda: starts(out))
        code, said = synthesize(out, count=64)
        assert code == 2
        assert f"pid {first.pid}" in said
        second = start(out, count=64, STANDIN_FORCE="1")
        until(lambda: any(len(labels) > 1 for labels in shards.starts(Run(str(out)), "synthetic").values()))
    for process in (first, second):
        code, said = end(process)
        assert code == 0, said
    assert committed(out) == planned(64)
    assert shards.verify(Run(str(out))) == []


def every_start_was_finished(out):
    """No shard was begun and left: what was in flight at the stop is committed."""
    return set(shards.starts(Run(str(out)), "synthetic")) == set(commits(out))


@pytest.mark.parametrize("how", ["raydr stop", "Ctrl-C"])
def test_a_stop_finishes_what_is_in_flight_and_says_how_to_go_on(how, ray_temp, tmp_path):
    out = tmp_path / "out"
    with held(out, seconds=1.0):
        process = start(out, count=128)
        until(lambda: starts(out))
        if how == "raydr stop":
            assert subprocess.run([sys.executable, "-m", "raydr", "stop", str(out)], check=True).returncode == 0
        else:
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to everything in its foreground
    asked = time.monotonic()
    code, said = end(process)
    assert time.monotonic() - asked < 25  # what is in flight takes a second or two, the rest is Ray's own end
    assert code == 1, said
    assert f"Stopped ({how}" in said
    assert f"go on with: raydr synthesize --recipe debug --out {out} --count 128" in said
    assert 0 < len(commits(out)) < 32
    assert every_start_was_finished(out)
    behave(out)
    made(out, count=128)
    assert committed(out) == planned(128)
    assert not (out / "_stop").exists()


def test_a_second_interrupt_ends_at_once(ray_temp, tmp_path):
    out = tmp_path / "out"
    behave(out, seconds=2000)  # longer than this test waits, with a row before the watchdog's 300 s
    process = start(out)
    until(lambda: shards.starts(Run(str(out)), "synthetic"))
    os.killpg(process.pid, signal.SIGINT)
    assert any("Ctrl-C: leasing no more" in line for line in process.stdout), "it does not wait for what is in flight"
    os.killpg(process.pid, signal.SIGINT)
    code, said = end(process)
    assert code == 1
    assert "go on with: raydr synthesize" in said


def test_a_stop_reaches_a_driver_whose_actors_do_not_come(ray_temp, tmp_path):
    """Nothing is in flight and no ticket comes back: the driver leaves by itself."""
    out = tmp_path / "out"
    behave(out, load=3000)
    process = start(out)
    until(lambda: psutil.Process(process.pid).children() and workers(process, "Generate"))
    assert cli.main(["stop", str(out)]) == 0
    code, said = end(process)
    assert code == 1, said
    assert "Stopped (raydr stop" in said
    assert not commits(out)


def test_money_ends_first(ray_temp, tmp_path):
    """A dollar a second of one node: start-up and idle time count, and over several drivers."""
    out, table = tmp_path / "out", tmp_path / "prices.toml"
    table.write_text('currency = "USD"\nchecked = true\n[nodes]\ndefault = 3600\n')
    behave(out, seconds=1.0)
    code, said = synthesize(out, "--max-cost", "40", "--shape.prices", str(table), count=2048)
    assert code == 1, said
    assert "The budget synthesize.max_cost 40 USD" in said
    assert "before all was made" in said
    assert f"{PLAIN} grade 1 has" in said
    assert "of 256 shards" in said
    assert every_start_was_finished(out)
    made = len(commits(out))
    # 40 s at most, and a shard takes a second of one of the laptop's generators.
    assert 0 < made <= 40 * shapes.Shape().generators
    code, said = synthesize(out, "--max-cost", "41", "--shape.prices", str(table), count=2048)
    assert code == 1, said
    assert len(commits(out)) <= made + 2, "what the first driver spent is forgotten"
    code, said = synthesize(out, "--max-gpu-seconds", "5", count=2048)
    assert code == 2
    assert "the shape laptop uses none" in said
    code, said = synthesize(out, "--max-cost", "5", count=2048)
    assert code == 2
    assert "needs the price of every node" in said


@pytest.mark.parametrize("how", ["killed", "drained"])
def test_a_node_goes_and_its_starts_do_not_count(how, tmp_path):
    """With a single crash allowed, a shard that was in flight on the node that went is made, not quarantined."""
    out = tmp_path / "out"
    behave(out, seconds=1.5)
    with several(2) as cluster:
        # The cluster was started without this folder, in which its workers find the stand-in.
        path = f"{Path(__file__).parent}:{cluster.environment['PYTHONPATH']}"
        environment = cluster.environment | {"RAY_AUTH_MODE": "token", "PYTHONPATH": path}
        options = ["--address", cluster.gcs, "--max-starts", "1", "--shape.generators", "2"]
        process = start(out, *options, count=64, **environment)
        until(lambda: len(commits(out)) > 1 or process.poll() is not None)
        assert process.poll() is None, end(process)
        if how == "killed":
            gone = node_of_a_new_start(out)
            cluster.end(gone)
        else:
            gone = next(iter(commits(out).values())).extra["node"]
            drain(cluster, environment, gone)
        cluster.add()
        code, said = end(process)
    assert code == 0, said
    assert committed(out) == planned(64)
    assert shards.quarantined(Run(str(out)), "synthetic") == []
    labels = starts(out)
    assert any(gone in label for label in labels)
    if how == "killed":
        assert any(label.startswith("waived.") for label in labels)


def starts(out):
    """The labels of every start of every shard."""
    return {label for labels in shards.starts(Run(str(out)), "synthetic").values() for label in labels}


def node_of_a_new_start(out):
    """The node on which a shard has just been started: it takes another 1.5 s there."""
    before = starts(out)
    until(lambda: starts(out) - before)
    return next(iter(starts(out) - before)).split(".")[2]


DRAIN = """
import sys, ray
from raydr.cluster import spot
ray.init(address=sys.argv[1], log_to_driver=False)
node = next(node["NodeID"] for node in ray.nodes() if node["NodeID"].startswith(sys.argv[2]))
assert spot.drain(spot.Notice(3.0, "a test takes it"), sys.argv[1], node)
"""


def drain(cluster, environment, node):
    subprocess.run([sys.executable, "-c", DRAIN, cluster.gcs, node], env=environment, check=True)
