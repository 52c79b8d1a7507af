"""What happened in a run, and when: a file that only grows, one JSON object a line."""

import errno
import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eigendamage_ext._files import explained


class Events:
    """events.jsonl of a run. A line that a kill tore stays torn; what follows begins on its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, event: str, **facts: Any) -> None:
        """Writes a line.

        Args:
            event: What it is: "begun", "ended", "measured", …
            facts: Anything `json.dumps` accepts.

        Raises:
            OSError: The disk is full or the like; what to do. The lines before are whole.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event} | facts) + "\n"
        with explained(self.path, "events"), self.path.open("ab+", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            if size and _last_byte(file.fileno(), size) != b"\n":
                line = "\n" + line
            try:
                written = file.write(line.encode())
                if written < len(line.encode()):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                with suppress(OSError):
                    file.truncate(size)
                raise


def _last_byte(descriptor: int, size: int) -> bytes:
    return os.pread(descriptor, 1, size - 1)


def read_events(path: Path) -> list[dict[str, Any]]:
    """All events but torn ones; none if there is no file."""
    found = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            found.append(event)
    return found
