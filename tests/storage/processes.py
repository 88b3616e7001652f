"""Code in a process of its own, which a failpoint may end."""

import os
import subprocess
import sys


def start(code: str, *arguments: str, failpoint: str = "") -> subprocess.Popen[str]:
    environment = os.environ | {"RAYDR_FAILPOINT": failpoint}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
