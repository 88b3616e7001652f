"""As a Ray job: ray job submit --working-dir . -- python jobs/sweep.py --recipe NAME --out URL"""

import sys

from raydr import cli

sys.exit(cli.main(["sweep", "--shape", "cluster", *sys.argv[1:]]))
