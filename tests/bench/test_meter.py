"""The recorder against work whose cost is known."""

import os
import subprocess
import sys
import time

from raydr.bench.meter import Recording, recording


def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_cpu_of_this_process_and_of_a_child_that_has_ended():
    code = "import time\nwhile time.process_time() < 1.6: pass\ntime.sleep(.7)"
    with recording() as found:
        child = subprocess.Popen([sys.executable, "-c", code])
        burn(0.5)
        child.wait()
        time.sleep(0.6)  # the child is gone now, its seconds stay
    assert 1.9 < found.cpu_seconds < 3.2
    assert [cpu for _, cpu in found.cpu] == sorted(cpu for _, cpu in found.cpu)
    assert found.peak_bytes > 5e6
    assert found.others >= 0
    assert 0 < found.watching < 1


def test_what_was_spent_before_does_not_count():
    burn(0.5)
    with recording(memory=False) as found:
        time.sleep(0.2)
    assert found.cpu_seconds < 0.4
    assert found.peak_bytes == 0


def test_resident_sizes_by_process():
    with recording(memory=False, resident=True) as found:
        held = bytearray(50_000_000)
        time.sleep(1.3)
    assert len(held) == 50_000_000
    assert found.resident
    assert all(sizes[os.getpid()] > 50_000_000 for _, sizes in found.resident)


def test_workers_are_known_by_their_title():
    """Ray writes `ray::IDLE` and the like over the command line of a worker."""
    code = ["-c", "import time; time.sleep(2)"]
    worker, other = (
        subprocess.Popen(["ray::IDLE", *code], executable=sys.executable),
        subprocess.Popen([sys.executable, *code]),
    )
    with recording(memory=False, resident=True) as found:
        time.sleep(1.3)
    assert found.workers == {worker.pid}
    assert {worker.pid, other.pid, os.getpid()} <= set(found.resident[-1][1])
    worker.kill()
    other.kill()
    worker.wait()
    other.wait()


def test_cpu_at_the_moments_of_progress():
    found = Recording(started=100.0)
    found.cpu = [(100.0, 0.0), (110.0, 20.0)]
    assert found.cpu_points([(5, 1.0), (10, 5.0)]) == [(5, 2.0), (10, 10.0)]
