"""The messages between the worker and the warm process: one JSON object per line, over a socket pair.

Worker to warm process:

* ``{"op": "start", "key", "module", "argv", "env_file", "cwd", "quiet", "threads"}``: fork, and run the module in
  the child, with the environment that is in the file; the child removes the file. `threads` is None for those that the
  warm process has.
* ``{"op": "signal", "key", "signal"}``: send the signal to the child's process group.

Warm process to worker:

* ``{"event": "ready", "pid", "preloaded", "failed", "seconds"}``
* ``{"event": "started", "key", "pid"}`` or ``{"event": "refused", "key", "reason"}``
* ``{"event": "ended", "key", "code", "ran_to_end"}``: `code` is negative for a signal; `ran_to_end` is true when the
  child's program came to its end, whatever its exit code.
"""

import json
from typing import Any

Message = dict[str, Any]


def encode(message: Message) -> bytes:
    """Encode a message as one line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


class Decoder:
    """Splits a stream of bytes into messages."""

    def __init__(self) -> None:
        self._incomplete = b""

    def feed(self, data: bytes) -> list[Message]:
        """Return the messages that are complete with this data."""
        *lines, self._incomplete = (self._incomplete + data).split(b"\n")
        return [json.loads(line) for line in lines]
