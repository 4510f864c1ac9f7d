"""TensorBoard's events, written by this process itself: a full disk is an error here and not one of another thread."""

import itertools
import os
import socket
import time
from pathlib import Path
from typing import Any

from supernet.errors import UnwritableError

_numbers = itertools.count()


class EventWriter:
    """A file of events in a folder, in the format that TensorBoard reads. Importing TensorBoard takes a second.

    Args:
        folder: for the events of one training; created if it is not there.
        step: what earlier files of the folder say of this and later steps no longer counts.

    Raises:
        UnwritableError: from every method too, if the file cannot be written, e.g. because the disk is full.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog  # type: ignore[import-untyped]

        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self.path = folder / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("xb")
        except OSError as error:
            raise self._unwritable(error) from error
        self._write(step, file_version="brain.Event:2")
        self._write(step, session_log=SessionLog(status=SessionLog.START))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Writes one value of a curve."""
        from torch.utils.tensorboard.summary import scalar

        self._write(step, summary=scalar(name, value))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, step: int, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

        event = Event(wall_time=time.time(), step=step, **content)
        try:
            RecordWriter(self._file).write(event.SerializeToString())
            self._file.flush()
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> UnwritableError:
        return UnwritableError(
            f"{self.path} cannot be written ({error.strerror}); what was saved before is intact. Make room; the same "
            "command then goes on"
        )
