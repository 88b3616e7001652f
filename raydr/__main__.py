"""`python -m raydr` is `raydr`."""

from raydr.cli import entry

if __name__ == "__main__":
    entry()
