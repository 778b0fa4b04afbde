"""The messages between the worker and the warm process: one JSON object a line, over a socket pair.

Worker to warm process:

* ``{"op": "start", "key", "module", "argv", "env", "cwd", "quiet"}``: fork, and run the module there.
* ``{"op": "signal", "key", "signal"}``: send the signal to the child's process group.

Warm process to worker:

* ``{"event": "ready", "pid", "preloaded", "failed", "seconds"}``
* ``{"event": "started", "key", "pid"}`` or ``{"event": "refused", "key", "reason"}``
* ``{"event": "ended", "key", "code", "clean"}``: `code` is negative for a signal; `clean` says that the
  child came to the end of its program, whatever its code.
"""

import json
from typing import Any

Message = dict[str, Any]


def encode(message: Message) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


class Decoder:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Message]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]
