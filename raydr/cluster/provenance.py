"""What made a run: versions of the packages, and the revision of the source tree."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = ("raydr", "ray", "torch", "diffusers", "transformers", "peft", "timm", "numpy", "pyarrow")


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES}


def revision() -> str | None:
    """Git revision of the source tree that is running, with "+" where it was changed; None when installed."""
    folder = Path(__file__).parent
    try:
        git = ["git", "-C", str(folder)]
        known = subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True, timeout=10)
        if known.returncode != 0:
            return None
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10).stdout.strip()
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head + ("+" if dirty.stdout.strip() else "")
