"""A training that can be stopped: its state in a file, written whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ..exceptions import CorruptFileError, OutputError


class Checkpoint:
    """The file in which the state of one training is kept.

    Parameters
    ----------
    path : path
        The file.
    key : str
        Identifies the training: what goes into it and how long it lasts.
    """

    def __init__(self, path: str | os.PathLike[str], key: str) -> None:
        self.path = Path(path)
        self.key = key

    def read(self) -> dict[str, Any] | None:
        """Return the state that is there; None if there is no file.

        Raises
        ------
        CorruptFileError
            If the file is something else.
        ValueError
            If it is of another training.
        """
        if not self.path.exists():
            return None
        try:
            found = torch.load(self.path, weights_only=True)
        except Exception as error:  # torch raises any of a dozen kinds
            raise CorruptFileError(
                f"is no checkpoint of a distilled merge ({str(error).partition(chr(10))[0]})",
                path=self.path,
                remedy="remove it to begin anew, or pass another path",
            ) from error
        if not isinstance(found, dict) or found.get("key") != self.key:
            raise ValueError(
                f"{self.path}: is the checkpoint of a merge of other adapters, inputs or parameters; remove it to "
                "begin anew, or pass another path"
            )
        state: dict[str, Any] = found["state"]
        return state

    def write(self, state: dict[str, Any]) -> None:
        """Replace the file.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        part = self.path.with_name(f"{self.path.name}.{os.getpid()}.part")
        try:
            torch.save({"key": self.key, "state": state}, part)
            part.replace(self.path)
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError
            with suppress(OSError):
                part.unlink()
            raise OutputError(
                f"the checkpoint cannot be written there: {error}",
                path=self.path,
            ) from error
