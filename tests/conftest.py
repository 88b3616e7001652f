"""Shared by all tests."""

import os

# Two workers of a test cluster on two cores: more threads only contend.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
