import os
import subprocess
import sys
import threading
import time

import pytest
import ray

from raydr.cluster import session

# A thread of the progress bar that is inside a call of Ray's when the session ends.
STRAGGLER = """
import sys, threading, time
import ray
from raydr.cluster import session
from raydr.shapes import Shape

@ray.remote
def slow():
    time.sleep(3)

def ask(answer):
    ray.get(answer, timeout=10)
    ray.cluster_resources()
    print("answered", flush=True)

with session.session(Shape(num_cpus=1, dashboard=False)):
    threading.Thread(target=ask, args=[slow.remote()], name="raydr-bar", daemon=True).start()
print("over", flush=True)
"""


def test_the_end_of_a_session_waits_for_threads_that_call_ray():
    threads = [threading.Thread(target=time.sleep, args=[0.3], name=name) for name in ("raydr-bar", "another")]
    for thread in threads:
        thread.start()
    assert session.await_callers(0.01) == ["raydr-bar"]
    started = time.monotonic()
    assert session.await_callers() == []
    assert time.monotonic() - started < 5


def test_data_settings_are_those_of_every_stage_and_go_again():
    """Also in a process whose Ray was there before: a shard is never split, and a wait for spot nodes never ends."""
    before = ray.data.DataContext.get_current()
    with session._data_settings():
        context = ray.data.DataContext.get_current()
        assert context.target_max_block_size is None
        assert context.execution_no_progress_timeout_s == -1
    assert ray.data.DataContext.get_current() is before
    assert before.target_max_block_size is not None


def test_a_thread_inside_a_call_of_rays_does_not_end_the_process(ray_temp):
    done = subprocess.run([sys.executable, "-c", STRAGGLER], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout.split()) == (0, ["answered", "over"]), done.stderr
    assert "log level" not in done.stderr


def test_only_ray_s_line_about_its_log_level_is_dropped(capfd):
    """Whoever writes it: C++ knows nothing of sys.stderr."""
    greeting = b"[2026 I 1 1] logging.cc:303: " + session.GREETING + b" RAY_BACKEND_LOG_LEVEL to 3\n"

    def write():
        with session._without_greeting():
            os.write(2, b"first\n" + greeting + b"an error\n")
            raise KeyError

    with pytest.raises(KeyError):
        write()
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "first\nan error\nafter\n"
