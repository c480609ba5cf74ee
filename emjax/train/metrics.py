"""Metrics as JSON lines, one a step; on resume the lines past the restored step are dropped and written again."""

import json
from pathlib import Path
from typing import Any


class MetricsFile:
    def __init__(self, path: Path, start: int):
        """`start` is the number of steps already done: their lines stay."""
        kept = [line for line in read_lines(path) if line["step"] <= start] if path.exists() else []
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w")
        for line in kept:
            self.write(line)

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a last line cut off by a kill is left out."""
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1] if line]
