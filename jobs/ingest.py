"""As a Ray job: ray job submit --working-dir . -- python jobs/ingest.py --recipe NAME --out URL"""

import sys

from raydr import cli

sys.exit(cli.main(["ingest", "--shape", "cluster", *sys.argv[1:]]))
