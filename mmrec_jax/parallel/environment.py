"""Which processes make one run: read from the flags or from what the launcher has put into the environment.

Everything here is a function of an environment mapping and, on TPU machines, of a reader of their metadata, so that
every launcher can be tested without being there.
"""

from __future__ import annotations

import http.client
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmrec_jax.errors import ConfigError, HostError

TPU_PORT, XPK_PORT = 8482, 1234
FIRST_PORT, PORTS = 61_000, 4_096
"""Above the ports that Linux gives to outgoing connections (32768 to 60999); the last is 65095."""

COUNTS = ("JAX_NUM_PROCESSES", "JAX_PROCESS_COUNT", "NNODES")
INDICES = ("JAX_PROCESS_ID", "NODE_RANK", "JOB_COMPLETION_INDEX")
"""JAX's own names, and those of xpk for hosts without TPUs."""
_ATTEMPTS = 5  # at the metadata server, a second apart

Metadata = Callable[[str], str | None]
"""Name of an instance attribute -> its value, or None where the machine has none of that name."""


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of one run, and which of them this one is.

    Attributes:
        coordinator: host (name or address) of process 0.
        port: where the service of `jax.distributed` listens there; the heartbeats take the port after it.
        count: processes of the run.
        index: of this process, from 0.
        source: who said so, for messages.
        hosts: host of each process; empty where the launcher does not tell.
        local_devices: the accelerators of this process, where several processes share a machine; None is all of them.
    """

    coordinator: str
    port: int
    count: int
    index: int
    source: str
    hosts: tuple[str, ...] = ()
    local_devices: tuple[int, ...] | None = None

    def __post_init__(self):
        if not 0 <= self.index < self.count:
            raise ConfigError(f"{self.source}: process {self.index} is none of {self.count} (0 to {self.count - 1}).")
        if not 0 < self.port < 65_535:
            raise ConfigError(
                f"{self.source}: port {self.port} of the coordinator must be from 1 to 65534: heartbeats take the next."
            )
        if self.hosts and len(self.hosts) != self.count:
            raise ConfigError(f"{self.source} names {len(self.hosts)} hosts for {self.count} processes.")

    @property
    def address(self) -> str:
        """Of the service of `jax.distributed`."""
        return f"{_bracketed(self.coordinator)}:{self.port}"


def from_flags(coordinator: str | None, processes: int | None, process: int | None) -> ProcessGroup | None:
    """The group that explicit flags name; None where they name none, or a single process.

    Raises:
        ConfigError: some of the flags are missing, or do not fit.
    """
    if processes == 1 or (coordinator is None and processes is None and process is None):
        return None
    if coordinator is None or processes is None or process is None:
        raise ConfigError("--coordinator=HOST:PORT, --processes=N and --process=I belong together: give all three.")
    host, port = _host_and_port(coordinator, "--coordinator")
    return ProcessGroup(host, port, processes, process, "the flags")


def detect(environment: Mapping[str, str], metadata: Metadata | None = None) -> ProcessGroup | None:
    """The group that the launcher describes; None for a process that is alone.

    Looked for in this order: JAX's own variables (of which JAX_NUM_PROCESSES=1 says that a process is alone, whatever
    else is set), TPU variables (GKE), TPU metadata (TPU VMs), Open MPI, SLURM, Kubernetes. Open MPI comes before SLURM,
    whose variables its processes inherit from the daemons that SLURM started.

    Raises:
        ConfigError: a launcher's variables are incomplete or contradict each other.
    """
    if environment.get("JAX_NUM_PROCESSES") == "1":
        return None
    if environment.get("JAX_COORDINATOR_IP"):  # MaxText's name
        environment = {"JAX_COORDINATOR_ADDRESS": environment["JAX_COORDINATOR_IP"], **environment}
    for found in (_jax, _gke_tpu, lambda e: _tpu_vm(e, metadata), _open_mpi, _slurm, _kubernetes):
        group = found(environment)
        if group is not None:
            return group if group.count > 1 else None
    return None


def tpu_metadata(environment: Mapping[str, str]) -> Metadata | None:
    """Reads the metadata server of a TPU VM; None where this machine has no TPU, or is told not to ask.

    The reader raises HostError where the server is there and does not answer: a host that took this for the want of an
    attribute would train by itself, and the others wait for it.
    """
    if "TPU_SKIP_MDS_QUERY" in environment or not (Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists()):
        return None
    server = environment.get("GCE_METADATA_IP", "metadata.google.internal")

    def read(name: str) -> str | None:
        url = f"http://{server}/computeMetadata/v1/instance/attributes/{name}"
        request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
        problem: Exception | None = None
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(1)
            try:
                with urllib.request.urlopen(request, timeout=5) as answer:
                    return answer.read().decode()
            except urllib.error.HTTPError as error:
                error.close()
                if error.code == 404:
                    return None
                problem = error
            except (OSError, http.client.HTTPException) as error:
                if isinstance(getattr(error, "reason", None), socket.gaierror):
                    return None  # no machine of Google's
                problem = error
        raise HostError(
            f"The metadata server of this TPU VM does not tell {name}: {problem}. Start again, or name the processes "
            "by --coordinator, --processes and --process; TPU_SKIP_MDS_QUERY=1 in the environment asks it nothing."
        ) from problem

    return read


def _jax(environment: Mapping[str, str]) -> ProcessGroup | None:
    """JAX's own variables, where no launcher has others beside them."""
    elsewhere = ("JOB_COMPLETION_INDEX", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NODELIST")
    if not environment.get("JAX_COORDINATOR_ADDRESS") or any(name in environment for name in elsewhere):
        return None
    return ProcessGroup(*_coordinator_count_and_index(environment), "JAX's variables")


def _coordinator_count_and_index(environment: Mapping[str, str]) -> tuple[str, int, int, int]:
    """Host and port of process 0, how many there are, and which one this is."""
    first = "JAX_COORDINATOR_ADDRESS"
    names = (first, *(next((n for n in names if environment.get(n)), names[0]) for names in (COUNTS, INDICES)))
    address, count, index = _all(environment, names)
    if ":" not in address:  # as xpk has it
        address = f"{address}:{environment.get('JAX_COORDINATOR_PORT', XPK_PORT)}"
    host, port = _host_and_port(address, first)
    return host, port, _number(count, names[1]), _number(index, names[2])


def _gke_tpu(environment: Mapping[str, str]) -> ProcessGroup | None:
    workers = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if not workers:
        return None
    worker = _numbers(environment, ("TPU_WORKER_ID",))[0]
    return _slices([name.split(":")[0] for name in workers.split(",")], worker, environment, "the TPU variables")


def _tpu_vm(environment: Mapping[str, str], metadata: Metadata | None) -> ProcessGroup | None:
    if metadata is None or (worker := metadata("agent-worker-number")) is None:
        return None
    endpoints = (metadata("worker-network-endpoints") or "").split(",")
    # Of two forms: a host alone, or name:id:address.
    hosts = [endpoint.split(":")[2] if endpoint.count(":") == 2 else endpoint for endpoint in endpoints]
    pairs = [line.partition(":") for line in (metadata("tpu-env") or "").splitlines()]
    settings = {name.strip(): value.strip().strip("'\"") for name, _, value in pairs}
    return _slices(hosts, _number(worker, "agent-worker-number"), {**settings, **environment}, "the TPU metadata")


def _slices(workers: list[str], worker: int, settings: Mapping[str, str], source: str) -> ProcessGroup:
    """The hosts of a slice, or of several that MEGASCALE variables join: slice by slice."""
    slices = _number(settings.get("MEGASCALE_NUM_SLICES") or "1", "MEGASCALE_NUM_SLICES")
    part = _number(settings.get("MEGASCALE_SLICE_ID") or "0", "MEGASCALE_SLICE_ID")
    first = workers[0]
    if slices > 1:
        first = _all(settings, ("MEGASCALE_COORDINATOR_ADDRESS",))[0].split(":")[0]
    hosts = tuple(workers) if slices == 1 and len(set(workers)) == len(workers) else ()
    count, index = slices * len(workers), part * len(workers) + worker
    return ProcessGroup(first, TPU_PORT, count, index, source, hosts)


def _open_mpi(environment: Mapping[str, str]) -> ProcessGroup | None:
    if "OMPI_COMM_WORLD_SIZE" not in environment:
        return None
    names = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")
    size, rank, local, local_size = _numbers(environment, names)
    if size == 1:
        return None
    uri = environment.get("OMPI_MCA_orte_hnp_uri", "")  # JOB.0;tcp://ADDRESS,ADDRESS:PORT, of the host of mpirun
    named = re.match(r"(\d+)\.\d+;(?:tcp://([^,:]+)|tcp6://\[([^,\]]+))", uri)
    if "JAX_COORDINATOR_ADDRESS" in environment:
        host, port = _host_and_port(environment["JAX_COORDINATOR_ADDRESS"], "JAX_COORDINATOR_ADDRESS")
    elif named:
        host, port = named[2] or named[3], _port_of_job(int(named[1]) // 4096)  # a job's number is a multiple of it
    else:
        raise ConfigError(
            "Open MPI's variables do not say where process 0 is (OMPI_MCA_orte_hnp_uri is absent since version 5): add "
            "`-x JAX_COORDINATOR_ADDRESS=HOST:PORT` of the first host to mpirun."
        )
    return ProcessGroup(host, port, size, rank, "Open MPI", (), _share(local, local_size, environment))


def _slurm(environment: Mapping[str, str]) -> ProcessGroup | None:
    """A task of `srun`; a batch script or an interactive shell is none, though it has some of the variables."""
    if "SLURM_STEP_NODELIST" not in environment or "SLURM_STEP_NUM_TASKS" not in environment:
        return None
    names = ("SLURM_JOB_ID", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")
    job, count, index, local, node = _numbers(environment, names)
    nodes = expand_hosts(environment["SLURM_STEP_NODELIST"])
    tasks = _tasks_per_node(environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    hosts: tuple[str, ...] = ()
    by_node = environment.get("SLURM_DISTRIBUTION", "block").startswith("block")
    if by_node and len(tasks) == len(nodes) and sum(tasks) == count:
        hosts = tuple(name for name, of in zip(nodes, tasks, strict=True) for _ in range(of))
    on_node = tasks[node] if node < len(tasks) else 1
    coordinator, port = nodes[0], _port_of_job(job)
    if environment.get("JAX_COORDINATOR_ADDRESS"):  # another network, or a port that is taken
        coordinator, port = _host_and_port(environment["JAX_COORDINATOR_ADDRESS"], "JAX_COORDINATOR_ADDRESS")
    return ProcessGroup(coordinator, port, count, index, "SLURM", hosts, _share(local, on_node, environment))


def _kubernetes(environment: Mapping[str, str]) -> ProcessGroup | None:
    """An indexed Job or a JobSet whose manifest names the coordinator; without it its pods work each for itself."""
    if "JOB_COMPLETION_INDEX" not in environment or not environment.get("JAX_COORDINATOR_ADDRESS"):
        return None
    host, port, count, index = _coordinator_count_and_index(environment)
    whole = any(environment.get(name) for name in INDICES[:-1])
    if "JOB_INDEX" in environment and not whole:  # of a JobSet of several jobs, each with the same number of pods
        pods = _numbers(environment, ("PROCESSES_IN_JOB",))[0]
        index += pods * _number(environment["JOB_INDEX"], "JOB_INDEX")
    return ProcessGroup(host, port, count, index, "Kubernetes")


def expand_hosts(expression: str) -> list[str]:
    """The hosts of SLURM's short form: `gpu[01-03,7],login` is gpu01, gpu02, gpu03, gpu7 and login.

    Raises:
        ConfigError: it is no such form.
    """
    parts = re.findall(r"(?:[^,\[\]]|\[[\d,-]+\])+", expression)
    if ",".join(parts) != expression:
        raise ConfigError(f"SLURM's list of hosts {expression!r} cannot be read: name them by --coordinator and so on.")
    return [host for part in parts for host in _expanded(part)]


def _expanded(part: str) -> list[str]:
    match = re.search(r"\[([\d,-]+)\]", part)
    if match is None:
        return [part]
    numbers: list[str] = []
    for piece in match[1].split(","):
        low, _, high = piece.partition("-")
        numbers += [f"{number:0{len(low)}d}" for number in range(int(low), int(high or low) + 1)]
    return [part[: match.start()] + number + rest for number in numbers for rest in _expanded(part[match.end() :])]


def _tasks_per_node(text: str) -> list[int]:
    """`4(x2),3` is [4, 4, 3]."""
    tasks = []
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            return []
        tasks += [int(match[1])] * int(match[2] or 1)
    return tasks


def _share(local: int, on_machine: int, environment: Mapping[str, str]) -> tuple[int, ...] | None:
    """The GPUs of one of several processes of a machine, all alike; None where the launcher has shared them out."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    gpus = on_machine if visible is None else len(visible.split(","))
    if on_machine == 1 or gpus < on_machine:
        return None
    each = gpus // on_machine
    return tuple(range(local * each, (local + 1) * each))


def _port_of_job(job: int) -> int:
    """Even, so that jobs of neighbouring numbers do not share a machine's port."""
    return FIRST_PORT + 2 * job % PORTS


def _all(environment: Mapping[str, str], names: Sequence[str]) -> list[str]:
    missing = [name for name in names if not environment.get(name)]
    if missing:
        given = ", ".join(name for name in names if name not in missing) or "other variables of the launcher"
        raise ConfigError(f"The environment has {given}, but not {', '.join(missing)}: set all, or unset all.")
    return [environment[name] for name in names]


def _numbers(environment: Mapping[str, str], names: Sequence[str]) -> list[int]:
    return [_number(value, name) for value, name in zip(_all(environment, names), names, strict=True)]


def _number(text: str, name: str) -> int:
    if not re.fullmatch(r"\d+", text.strip()):
        raise ConfigError(f"{name}={text!r} is no number.")
    return int(text)


def _host_and_port(address: str, name: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"{name}={address}: give HOST:PORT.")
    return host.strip("[]"), int(port)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
