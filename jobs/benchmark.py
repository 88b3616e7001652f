"""As a Ray job, on one GPU node: ray job submit --entrypoint-num-gpus 1 --working-dir . -- python jobs/benchmark.py all
--shape workstation --json FILE (without a GPU neither option)."""

import sys

from raydr import cli

sys.exit(cli.main(["bench", *sys.argv[1:]]))
