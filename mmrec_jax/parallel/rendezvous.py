"""The processes of a run meet at the first one's host, before any of them starts JAX.

So that whoever does not come is named: `jax.distributed` alone would say that somebody is missing.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from typing import Any

from mmrec_jax.errors import HostError
from mmrec_jax.parallel.environment import ProcessGroup
from mmrec_jax.parallel.peers import Line, Peer, ready

_RETRY = 0.2  # seconds between two attempts to reach the first process
_HELLO_SECONDS = 10.0
_HELLO = frozenset({"index", "count", "host", "pid", "run"})


@dataclass(frozen=True)
class Meeting:
    """What every process knows after it.

    Attributes:
        me: this process.
        peers: all processes, by index.
        lines: index -> line to it: of the first process to all others, of the others to the first.
    """

    me: Peer
    peers: tuple[Peer, ...]
    lines: dict[int, Line]


def meet(group: ProcessGroup, timeout: float, run: str) -> Meeting:
    """Waits for all processes.

    Args:
        group: which they are.
        timeout: seconds.
        run: what tells this run from others, such as its flags: must be the same in all processes.

    Raises:
        HostError: some did not come in time, or belong to another run: names them.
    """
    me = Peer(group.index, socket.gethostname(), os.getpid())
    return _first(group, me, timeout, run) if group.index == 0 else _other(group, me, timeout, run)


def _first(group: ProcessGroup, me: Peer, timeout: float, run: str) -> Meeting:
    peers: dict[int, Peer] = {0: me}
    lines: dict[int, Line] = {}
    deadline = time.monotonic() + timeout
    port = group.port + 1
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        listener = socket.create_server(
            ("", port), family=family, backlog=group.count, dualstack_ipv6=family == socket.AF_INET6
        )
    except OSError as error:
        raise HostError(
            f"process 0 cannot listen on port {port} of {me.host} ({error.strerror}): give --coordinator another port, "
            "or end what holds it."
        ) from error
    with listener:
        while len(peers) < group.count and time.monotonic() < deadline:
            listener.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                connection, address = listener.accept()
            except TimeoutError:
                break
            line = Line(connection)
            said = _hear(line, min(_HELLO_SECONDS, deadline - time.monotonic()))
            if said is None or not said.keys() >= _HELLO:
                line.close()  # a port scanner, or a process that died
                continue
            if problem := _unfit(said, group, run, peers):
                line.send(refused=problem)
                for other in lines.values():
                    other.send(refused=problem)
                raise HostError(f"{problem} (It came from {address[0]}.)")
            peers[said["index"]] = Peer(said["index"], said["host"], said["pid"])
            lines[said["index"]] = line
    missing = [index for index in range(group.count) if index not in peers]
    if missing:
        names = ", ".join(f"process {i}" + (f" ({group.hosts[i]})" if group.hosts else "") for i in missing)
        late = (
            f"{names} of {group.count} did not come to {me.host} port {port} within {timeout:g} s "
            "(parallel.timeout_seconds): see whether it was started and can reach that port, and start all again."
        )
        for line in lines.values():
            line.send(refused=late)
        raise HostError(late)
    everybody = tuple(peers[index] for index in range(group.count))
    for line in lines.values():
        line.send(all=[[peer.index, peer.host, peer.pid] for peer in everybody])
    return Meeting(me, everybody, lines)


def _unfit(said: dict[str, Any], group: ProcessGroup, run: str, peers: dict[int, Peer]) -> str:
    """Why a process that came cannot be one of this run's."""
    who = f"process {said['index']} ({said['host']}, pid {said['pid']})"
    if said["count"] != group.count:
        return f"{who} was started as one of {said['count']} processes, and this is one of {group.count}."
    if said["index"] in peers:
        return f"{who} came, but {peers[said['index']]} is here already: give each process a number of its own."
    if said["run"] != run:
        return f"{who} was started with other flags or another version: {said['run']}, and process 0 with {run}."
    return ""


def _other(group: ProcessGroup, me: Peer, timeout: float, run: str) -> Meeting:
    deadline = time.monotonic() + timeout
    where = f"process 0 ({group.coordinator} port {group.port + 1})"
    problem = "nobody listens there"
    while True:
        try:
            connection = socket.create_connection((group.coordinator, group.port + 1), timeout=timeout)
            break
        except OSError as error:
            problem = error.strerror or str(error)
        if time.monotonic() > deadline:
            raise HostError(
                f"{where} could not be reached within {timeout:g} s (parallel.timeout_seconds): {problem}. See whether "
                "it was started and that port is open, and start all again."
            )
        time.sleep(_RETRY)
    line = Line(connection)
    line.send(index=me.index, count=group.count, host=me.host, pid=me.pid, run=run)
    # The first process counts from its own start, and says who is late.
    said = _hear(line, timeout + _HELLO_SECONDS)
    if said is None or not said.keys() & {"refused", "all"}:
        line.close()
        raise HostError(f"{where} ended or fell silent before all {group.count} processes were there: see its output.")
    if "refused" in said:
        raise HostError(said["refused"])
    return Meeting(me, tuple(Peer(*values) for values in said["all"]), {0: line})


def _hear(line: Line, seconds: float) -> dict[str, Any] | None:
    """The next message; None where none comes in time."""
    deadline = time.monotonic() + seconds
    while line.open and (left := deadline - time.monotonic()) > 0:
        if ready([line], left) and (said := line.receive()):
            return said[0]
    return None
