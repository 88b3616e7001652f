"""All stages as a Ray job: ray job submit --working-dir . -- python jobs/run.py --recipe NAME --out URL"""

import sys

from raydr import cli

sys.exit(cli.main(["run", "--shape", "cluster", *sys.argv[1:]]))
