"""The processes of a run as they know each other, and the lines between them: a message is a line of JSON."""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_SEND_SECONDS = 5.0  # the messages are short: a line that takes none for so long is broken


@dataclass(frozen=True)
class Peer:
    """A process of the run.

    Attributes:
        index: among the processes.
        host: name of its machine, as that calls itself.
        pid: its process id there.
    """

    index: int
    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.index} ({self.host}, pid {self.pid})"


class Line:
    """A connection to another process.

    Attributes:
        open: False once the other end is gone.
    """

    def __init__(self, connection: socket.socket):
        connection.settimeout(_SEND_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection, self._rest = connection, b""
        self.open = True

    def fileno(self) -> int:
        """For `select`."""
        return self._connection.fileno()

    def send(self, **message: Any) -> None:
        """Sends a message; to an end that is gone, none."""
        try:
            self._connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self.open = False

    def receive(self) -> list[dict[str, Any]]:
        """The messages that have come, after `ready` named this line. What is no message ends the line."""
        try:
            data = self._connection.recv(2**16)
        except OSError:
            data = b""
        if not data:
            self.open = False
            return []
        *whole, self._rest = (self._rest + data).split(b"\n")
        try:
            messages = [json.loads(text) for text in whole]
        except ValueError:
            messages = [None]
        if not all(isinstance(message, dict) for message in messages):
            self.close()  # somebody else, such as a port scanner
            return []
        return messages

    def close(self) -> None:
        """Ends the connection."""
        self.open = False
        self._connection.close()


def ready(lines: Iterable[Line], seconds: float) -> list[Line]:
    """The lines of which there is something to receive, their end included; waits for the first at most so long."""
    held = [line for line in lines if line.open]
    if not held:
        select.select([], [], [], seconds)
        return []
    return select.select(held, [], [], seconds)[0]
