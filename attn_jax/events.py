"""TensorBoard event files. The only file that imports tensorboardX."""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path


class Events:
    """The scalars of a run, written as they come.

    tensorboardX's own writer has a thread behind a queue: where the disk is full the thread dies, and training waits
    for the queue for ever. Raises OSError where the file cannot be written.

    folder: of the run alone; begun anew for step 0. step: events of later steps, which a killed process wrote, are not
    shown.
    """

    def __init__(self, folder: Path, step: int = 0):
        from tensorboardX.event_file_writer import EventsWriter  # Only training needs it.
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        if not step:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), filename_suffix=f".{step}")
        if step:
            self._writer.write_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """The values of a step, as split/name."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=f"{split}/{name}", simple_value=value) for name, value in values.items()]
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))

    def flush(self) -> None:
        """Hands everything to the operating system."""
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()
