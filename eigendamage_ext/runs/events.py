"""What happened in a run, and when: a file that only grows, one JSON object a line."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


class Events:
    """events.jsonl of a run. A line that a kill tore stays torn; what follows begins on its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, event: str, **facts: Any) -> None:
        """Writes a line.

        Args:
            event: What it is: "begun", "ended", "measured", …
            facts: Anything `json.dumps` accepts.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event} | facts) + "\n"
        with self.path.open("ab+") as file:
            if file.tell() and _last_byte(file.fileno(), file.tell()) != b"\n":
                line = "\n" + line
            file.write(line.encode())


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
