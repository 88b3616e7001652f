"""A generator's TensorBoard files: appended in the run's folder, or here and uploaded where the run is in a bucket."""

import tempfile
from pathlib import Path

from raydr.storage import Run


class Board:
    """`writer` is a SummaryWriter; `store` shows others what it wrote. Each start of a rank makes a file of its own."""

    def __init__(self, target: Run, generator_id: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._target, self._key = target, f"logs/tensorboard/{generator_id}"
        # A bucket has no appending: its files grow on this node's disk.
        self._folder = tempfile.TemporaryDirectory(prefix="raydr-board-") if target.local is None else None
        self.writer = SummaryWriter(self._folder.name if self._folder else str(target.path(self._key)))

    def store(self) -> None:
        """Write out what is buffered; in a bucket replace the objects by what the files hold now.

        Raises UserError for what a user can mend about the storage, OSError for this node's disk.
        """
        self.writer.flush()
        if self._folder is not None:
            for path in sorted(Path(self._folder.name).iterdir()):
                self._target.replace(f"{self._key}/{path.name}", path)

    def close(self) -> None:
        self.store()
        self.writer.close()
        if self._folder is not None:
            self._folder.cleanup()
