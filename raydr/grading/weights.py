"""State dicts from files of others, read without running their code."""

import pickle
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from raydr.errors import MissingInput, UserError

# Where published checkpoints keep the state dict: LANet's "net", timm's and others' habits.
ENVELOPES = ("net", "state_dict", "model", "model_state_dict")

# What torch and safetensors raise for bytes that are no weights; a damaged pickle may end in nearly anything.
UNREADABLE = (
    pickle.UnpicklingError, SafetensorError, EOFError, RuntimeError, OSError,
    ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, OverflowError, MemoryError,
)  # fmt: skip


def _require_stored(path: Path) -> None:
    """UserError for an archive that unpacks to far more than it is: torch itself stores, it never compresses."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as weights ({error}): fetch it again") from None
    if size > 2 * path.stat().st_size + (1 << 20):
        raise UserError(f"{path} unpacks to {size} bytes, which no weights file of torch does: do not use it")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or torch file by name, without DataParallel's `module.` prefix.

    torch files are read with `weights_only`, so a file that would run code is refused. Raises
    MissingInput if there is no such file, UserError if it holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingInput(f"no weights file at {path}: check the path")
    _require_stored(path)
    try:
        content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except UNREADABLE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} cannot be read as weights without running code from it ({reason})") from error
    for key in ENVELOPES:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    state = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not state:
        raise UserError(f"{path} holds no state dict, neither at its top nor under {', '.join(ENVELOPES)}")
    return {name.removeprefix("module."): value for name, value in state.items()}
