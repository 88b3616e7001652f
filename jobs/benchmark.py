"""As a Ray job: ray job submit --working-dir . -- python jobs/benchmark.py all --json FILE"""

import sys

from raydr import cli

sys.exit(cli.main(["bench", *sys.argv[1:]]))
