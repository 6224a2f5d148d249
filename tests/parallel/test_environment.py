"""Which processes make one run, by what each launcher puts into the environment."""

from __future__ import annotations

import http.server
import threading
from typing import ClassVar

import pytest

from mmrec_jax.errors import ConfigError, HostError
from mmrec_jax.parallel import environment
from mmrec_jax.parallel.environment import ProcessGroup, detect, expand_hosts, from_flags, tpu_metadata

SLURM = {
    "SLURM_JOB_ID": "4100",
    "SLURM_STEP_NODELIST": "gpu[01-02],big7",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_NTASKS": "5",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
GKE = {"TPU_WORKER_HOSTNAMES": "w0.svc,w1.svc,w2.svc,w3.svc", "TPU_WORKER_ID": "2"}
TPU_VM = {
    "agent-worker-number": "1",
    "worker-network-endpoints": "unknown:unknown:10.1.0.2,unknown:unknown:10.1.0.3",
    "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-16'\nZONE: 'us-west4-a'\n",
}
JOB = {
    "JOB_COMPLETION_INDEX": "1",
    "JAX_NUM_PROCESSES": "4",
    "JAX_COORDINATOR_ADDRESS": "run-workers-0-0.run:1234",
}


def where(group):
    return group.address, group.count, group.index, group.source


def test_a_process_without_a_launcher_is_alone():
    assert detect({"PATH": "/usr/bin", "HOSTNAME": "laptop"}) is None
    assert from_flags(None, None, None) is None


def test_flags_name_a_group_and_are_given_together():
    assert where(from_flags("10.0.0.1:1234", 8, 3)) == ("10.0.0.1:1234", 8, 3, "the flags")
    assert from_flags("[fe80::1]:1234", 2, 0).address == "[fe80::1]:1234"
    with pytest.raises(ConfigError, match="belong together"):
        from_flags("10.0.0.1:1234", 8, None)
    with pytest.raises(ConfigError, match="give HOST:PORT"):
        from_flags("10.0.0.1", 8, 0)
    with pytest.raises(ConfigError, match="process 8 is none of 8"):
        from_flags("10.0.0.1:1234", 8, 8)
    with pytest.raises(ConfigError, match="from 1 to 65534"):
        from_flags("10.0.0.1:65535", 8, 0)


def test_jax_variables_name_a_group():
    found = detect(
        {"JAX_COORDINATOR_ADDRESS": "a:900", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1", "SLURM_JOB_ID": "7"}
    )
    assert where(found) == ("a:900", 2, 1, "JAX's variables")
    with pytest.raises(ConfigError, match=r"has JAX_COORDINATOR_ADDRESS, but not JAX_NUM_PROCESSES, JAX_PROCESS_ID"):
        detect({"JAX_COORDINATOR_ADDRESS": "a:900"})
    with pytest.raises(ConfigError, match="JAX_NUM_PROCESSES='two' is no number"):
        detect({"JAX_COORDINATOR_ADDRESS": "a:900", "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "1"})


def test_a_process_can_be_told_that_it_is_alone():
    for launcher in (SLURM, OPEN_MPI, GKE, JOB):
        assert detect({**launcher, "JAX_NUM_PROCESSES": "1"}) is None


def test_slurm_names_hosts_and_a_port_of_the_job():
    found = detect(SLURM)
    assert where(found) == ("gpu01:61008", 5, 3, "SLURM")  # 61000 + 2 * 4100 modulo 4096
    assert found.hosts == ("gpu01", "gpu01", "gpu02", "gpu02", "big7")
    assert detect({**SLURM, "SLURM_JOB_ID": "4101"}).port == 61010
    assert detect({**SLURM, "SLURM_DISTRIBUTION": "cyclic"}).hosts == ()
    assert detect({**SLURM, "JAX_COORDINATOR_ADDRESS": "ib-gpu01:700"}).address == "ib-gpu01:700"


def test_ports_of_neighbouring_slurm_jobs_differ_and_lie_above_those_of_outgoing_connections():
    ports = [detect({**SLURM, "SLURM_JOB_ID": str(job)}).port for job in range(2048)]
    both = {port for first in ports for port in (first, first + 1)}  # heartbeats take the next
    assert len(both) == 4096
    assert min(both) > 60_999
    assert max(both) < 65_536


def test_a_batch_script_of_slurm_is_no_task_of_it():
    batch = {name: value for name, value in SLURM.items() if "STEP" not in name}
    assert detect(batch) is None
    alone = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_STEP_NODELIST": "gpu01"}
    assert detect({**SLURM, **alone, "SLURM_PROCID": "0", "SLURM_NODEID": "0"}) is None


def test_tasks_of_a_machine_share_its_gpus_unless_slurm_has_shared_them_out():
    assert detect(SLURM).local_devices == (1,)
    assert detect({**SLURM, "CUDA_VISIBLE_DEVICES": "0,1,2,3"}).local_devices == (2, 3)
    assert detect({**SLURM, "CUDA_VISIBLE_DEVICES": "3"}).local_devices is None
    alone_there = {"SLURM_PROCID": "4", "SLURM_LOCALID": "0", "SLURM_NODEID": "2", "CUDA_VISIBLE_DEVICES": "0,1"}
    assert detect({**SLURM, **alone_there}).local_devices is None


@pytest.mark.parametrize(
    ("expression", "hosts"),
    [
        ("node7", ["node7"]),
        ("a,b", ["a", "b"]),
        ("gpu[001-003,7]", ["gpu001", "gpu002", "gpu003", "gpu7"]),
        ("gpu[08-11].site,login", ["gpu08.site", "gpu09.site", "gpu10.site", "gpu11.site", "login"]),
        ("r[1-2]n[5,6]", ["r1n5", "r1n6", "r2n5", "r2n6"]),
    ],
)
def test_slurm_writes_lists_of_hosts_in_a_short_form(expression, hosts):
    assert expand_hosts(expression) == hosts


def test_a_list_of_hosts_that_cannot_be_read_names_the_flags():
    with pytest.raises(ConfigError, match="--coordinator"):
        expand_hosts("gpu[1-")


def test_open_mpi_names_the_host_of_mpirun():
    assert where(detect(OPEN_MPI)) == ("10.96.0.1:63368", 4, 2, "Open MPI")  # job 373920: 61000 + 747840 modulo 4096
    version6 = "1314521088.0;tcp6://[fe80::b9b:ac5d,2620:10d::2]:43370"
    assert detect({**OPEN_MPI, "OMPI_MCA_orte_hnp_uri": version6}).coordinator == "fe80::b9b:ac5d"


def test_open_mpi_without_its_address_asks_for_one():
    without = {name: value for name, value in OPEN_MPI.items() if name != "OMPI_MCA_orte_hnp_uri"}
    with pytest.raises(ConfigError, match="-x JAX_COORDINATOR_ADDRESS=HOST:PORT"):
        detect(without)
    assert detect({**without, "JAX_COORDINATOR_ADDRESS": "n1:99"}).address == "n1:99"


def test_open_mpi_comes_before_the_slurm_that_started_it():
    assert detect({**SLURM, **OPEN_MPI}).source == "Open MPI"


def test_gke_names_the_hosts_of_a_slice():
    found = detect(GKE)
    assert where(found) == ("w0.svc:8482", 4, 2, "the TPU variables")
    assert found.hosts == ("w0.svc", "w1.svc", "w2.svc", "w3.svc")
    assert detect({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}) is None
    with pytest.raises(ConfigError, match="TPU_WORKER_ID"):
        detect({"TPU_WORKER_HOSTNAMES": "a,b"})


def test_slices_are_joined_by_megascale():
    more = {
        "MEGASCALE_NUM_SLICES": "2",
        "MEGASCALE_SLICE_ID": "1",
        "MEGASCALE_COORDINATOR_ADDRESS": "job-slice-0-0.job:8081",
    }
    assert where(detect({**GKE, **more})) == ("job-slice-0-0.job:8482", 8, 6, "the TPU variables")


def test_a_tpu_vm_asks_its_metadata():
    found = detect({}, TPU_VM.get)
    assert where(found) == ("10.1.0.2:8482", 2, 1, "the TPU metadata")
    assert found.hosts == ("10.1.0.2", "10.1.0.3")
    assert detect({}, {**TPU_VM, "worker-network-endpoints": "10.1.0.2", "agent-worker-number": "0"}.get) is None
    assert detect({}, {"other": "attribute"}.get) is None
    slices = "MEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\nMEGASCALE_COORDINATOR_ADDRESS: '10.9.0.1'"
    assert where(detect({}, {**TPU_VM, "tpu-env": slices}.get))[:3] == ("10.9.0.1:8482", 4, 3)


def test_kubernetes_needs_a_coordinator_in_the_manifest():
    assert where(detect(JOB)) == ("run-workers-0-0.run:1234", 4, 1, "Kubernetes")
    assert detect({"JOB_COMPLETION_INDEX": "1", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}) is None
    several = {**JOB, "JOB_INDEX": "1", "PROCESSES_IN_JOB": "2", "JAX_COORDINATOR_ADDRESS": "run-0-0.run"}
    assert where(detect(several)) == ("run-0-0.run:1234", 4, 3, "Kubernetes")
    with pytest.raises(ConfigError, match="JAX_NUM_PROCESSES"):
        detect({name: value for name, value in JOB.items() if name != "JAX_NUM_PROCESSES"})


# What xpk and Kubernetes put into a pod (`docker_resources.py` of xpk), as far as it tells of processes.
XPK_GPUS = {
    "REPLICATED_JOB_NAME": "slice-job",
    "JOBSET_NAME": "rec",
    "JAX_COORDINATOR_ADDRESS": "rec-slice-job-0-0.rec",
    "NNODES": "4",
    "NODE_RANK": "3",
    "USE_GPUDIRECT": "tcpxo",
    "GPUS_PER_NODE": "8",
    "JAX_COORDINATOR_PORT": "6002",
    "JOB_COMPLETION_INDEX": "3",
    "KUBERNETES_SERVICE_HOST": "10.0.0.1",
}
XPK_CPUS = {
    "REPLICATED_JOB_NAME": "slice-job",
    "JOB_INDEX": "1",
    "JOB_COMPLETION_INDEX": "0",
    "PROCESSES_IN_JOB": "2",
    "JAX_PROCESS_COUNT": "4",
    "JAX_COORDINATOR_ADDRESS": "rec-slice-job-0-0.rec",
}


def test_xpk_names_its_hosts_without_tpus_its_own_way():
    assert where(detect(XPK_GPUS)) == ("rec-slice-job-0-0.rec:6002", 4, 3, "Kubernetes")
    assert where(detect(XPK_CPUS)) == ("rec-slice-job-0-0.rec:1234", 4, 2, "Kubernetes")
    assert detect({**XPK_GPUS, "NNODES": "1", "NODE_RANK": "0"}) is None
    without = {name: value for name, value in XPK_GPUS.items() if name != "JOB_COMPLETION_INDEX"}
    assert where(detect(without)) == ("rec-slice-job-0-0.rec:6002", 4, 3, "JAX's variables")


def test_maxtext_calls_the_coordinator_by_another_name():
    found = {"JAX_COORDINATOR_IP": "10.0.0.9", "JAX_COORDINATOR_PORT": "6002", "NNODES": "4", "NODE_RANK": "3"}
    assert where(detect(found)) == ("10.0.0.9:6002", 4, 3, "JAX's variables")
    assert where(detect({**found, "JOB_COMPLETION_INDEX": "3"})) == ("10.0.0.9:6002", 4, 3, "Kubernetes")
    assert detect({**found, "JAX_COORDINATOR_IP": ""}) is None


class Answers(http.server.BaseHTTPRequestHandler):
    """A metadata server: status codes that it answers with, one after another, the last one again and again."""

    codes: ClassVar[list[int]] = []

    def do_GET(self):
        self.send_response(self.codes.pop(0) if len(self.codes) > 1 else self.codes[0])
        self.end_headers()
        self.wfile.write(b"7")

    def log_message(self, *_):
        pass


@pytest.fixture
def metadata(monkeypatch):
    """Reads an attribute from a metadata server that answers with these status codes."""
    monkeypatch.setattr(environment.Path, "exists", lambda path: str(path) == "/dev/accel0")
    monkeypatch.setattr(environment.time, "sleep", lambda _: None)
    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

        def read(*codes):
            monkeypatch.setattr(Answers, "codes", list(codes))
            return tpu_metadata({"GCE_METADATA_IP": f"127.0.0.1:{server.server_port}"})("agent-worker-number")

        yield read
        server.shutdown()


def test_a_metadata_server_that_fails_is_asked_again_and_not_taken_for_an_answer(metadata):
    assert metadata(200) == "7"
    assert metadata(404) is None
    assert metadata(503, 503, 200) == "7"
    with pytest.raises(HostError, match=r"does not tell agent-worker-number: HTTP Error 503.*TPU_SKIP_MDS_QUERY=1"):
        metadata(503)


def test_a_machine_with_accelerators_elsewhere_has_no_metadata_server(metadata):
    assert tpu_metadata({"GCE_METADATA_IP": "no-such-host.invalid"})("agent-worker-number") is None


def test_hosts_are_one_for_each_process():
    with pytest.raises(ConfigError, match="names 1 hosts for 2 processes"):
        ProcessGroup("a", 1, 2, 0, "SLURM", ("a",))
