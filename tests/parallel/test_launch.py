"""The launch scripts: what they would run, by their dry runs, and what they refuse."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parent.parent.parent / "launch"
SCRIPTS = ("tpu_pod.sh", "gke_xpk.sh", "slurm.sbatch", "gpu_workstation.sh", "local_multiprocess.sh")
WAITS = f"""#!{sys.executable}
import signal

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
print("started", flush=True)
raise SystemExit(75 if signal.sigtimedwait([signal.SIGTERM], 20) else 0)
"""
FLAGS = ("--config=my configs/crossan.py:smoke", "--config.evaluation.ks=(5, 10)")


def launch(script, *arguments, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "XLA_"))}
    command = ["bash", str(LAUNCH / script), *arguments]
    done = subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True, timeout=30)
    return done.returncode, [shlex.split(line) for line in done.stdout.splitlines()], done.stderr


def test_processes_of_one_machine_differ_in_their_numbers_only():
    code, lines, _ = launch("local_multiprocess.sh", "3", "--dry-run", "--devices=4", "--port=900", "--", *FLAGS)
    assert code == 0
    assert lines[0] == ["export", "XLA_FLAGS= --xla_force_host_platform_device_count=4"]
    for index, line in enumerate(lines[1:]):
        places = ["--coordinator=127.0.0.1:900", "--processes=3", f"--process={index}"]
        assert line == ["python", "-m", "mmrec_jax.main", *FLAGS, *places]
    assert len(lines) == 4


def test_a_tpu_pod_is_made_set_up_used_and_given_back():
    place = ("--dry-run", "--name=rec", "--zone=us-west4-a", "--project=p")
    of_gcloud = ["gcloud", "compute", "tpus", "tpu-vm"]
    where = ["--zone=us-west4-a", "--project=p"]
    made = launch("tpu_pod.sh", "create", *place, "--type=v5litepod-16", "--spot")[1]
    sizes = ["--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite", "--spot"]
    assert made == [[*of_gcloud, "create", "rec", *where, *sizes]]
    packed, copied, installed = launch("tpu_pod.sh", "install", *place)[1]
    assert packed[0] == "git"
    assert copied[4:6] == ["scp", packed[-2].removeprefix("--output=")]
    assert "pip install" in installed[-1]
    (run,) = launch("tpu_pod.sh", "run", *place, "--", *FLAGS)[1]
    assert run[:-1] == [*of_gcloud, "ssh", "rec", *where, "--worker=all"]
    remote = shlex.split(run[-1].removeprefix("--command="))  # as the shell of a host reads it
    assert remote[remote.index("-m") :] == ["-m", "mmrec_jax.main", *FLAGS]
    (stopped,) = launch("tpu_pod.sh", "stop", *place)[1]
    assert "pkill -TERM" in stopped[-1]
    assert launch("tpu_pod.sh", "delete", *place)[1] == [[*of_gcloud, "delete", "rec", *where, "--quiet"]]


def test_a_workload_of_gke_runs_the_same_flags():
    options = ("--dry-run", "--cluster=c", "--workload=w", "--image=gcr.io/p/m:tpu", "--zone=z")
    code, (line,), _ = launch("gke_xpk.sh", *options, "--device=v6e-256", "--slices=2", "--", *FLAGS)
    assert code == 0
    assert line[:3] == ["xpk", "workload", "create"]
    assert {"--device-type=v6e-256", "--num-slices=2", "--docker-image=gcr.io/p/m:tpu", "--zone=z"} <= set(line)
    command = shlex.split(line[-1].removeprefix("--command="))
    assert command == ["exec", "python", "-m", "mmrec_jax.main", *FLAGS]
    gpus = launch("gke_xpk.sh", *options, "--device=h100-mega-80gb-8", "--slices=8", "--", *FLAGS)[1][0]
    assert "--num-nodes=8" in gpus


def test_a_slurm_job_is_one_task_a_node():
    code, (line,), _ = launch("slurm.sbatch", "--dry-run", "--image=m.sqsh", "--", *FLAGS)
    assert code == 0
    assert line[0] == "srun"
    assert "--container-image=m.sqsh" in line
    assert line[line.index("python") :] == ["python", "-u", "-m", "mmrec_jax.main", *FLAGS]
    head = (LAUNCH / "slurm.sbatch").read_text()
    for option in ("--ntasks-per-node=1", "--signal=TERM@180", "--requeue"):
        assert f"#SBATCH {option}\n" in head


def test_a_slurm_job_that_was_ended_goes_back_into_the_queue(tmp_path):
    for name, ends in (("srun", "exit $CODE"), ("scontrol", 'echo "$@"')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{ends}\n")
        (tmp_path / name).chmod(0o755)
    around = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
    for code, said in ((75, [["requeue", "17"]]), (69, [["requeue", "17"]]), (2, []), (0, [])):
        assert launch("slurm.sbatch", "--", *FLAGS, CODE=str(code), **around)[:2] == (code, said)


def test_a_workstation_needs_no_connection():
    assert launch("gpu_workstation.sh", "--dry-run", "--gpus=0,1", "--", *FLAGS)[1] == [
        ["env", "JAX_PLATFORMS=cuda", "CUDA_VISIBLE_DEVICES=0,1", "python", "-m", "mmrec_jax.main", *FLAGS]
    ]
    (line,) = launch("gpu_workstation.sh", "--dry-run", "--image=m:gpu", "--data=/d", "--", *FLAGS)[1]
    assert line[:2] == ["docker", "run"]
    assert line[-3:] == ["m:gpu", *FLAGS]


def test_a_workstation_starts_again_as_often_as_it_is_told(tmp_path):
    count = tmp_path / "count"
    (tmp_path / "env").write_text(f"#!/bin/bash\necho x >> {count}\nexit 75\n")
    (tmp_path / "env").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    assert launch("gpu_workstation.sh", "--restarts=2", "--", *FLAGS, PATH=path)[0] == 75
    assert count.read_text().count("x") == 3


def test_the_worst_end_of_local_processes_is_told(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\nlast="${@: -1}"\nset -- $ENDS\nshift "${last#--process=}"\nexit "$1"\n')
    python.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    for ends, code in (("0 0 0", 0), ("0 75 0", 75), ("69 2 69", 2), ("69 75 69", 69)):
        assert launch("local_multiprocess.sh", "3", "--port=9", "--", PATH=path, ENDS=ends)[0] == code, ends


@pytest.fixture
def heard():
    """Lets what a test starts hear SIGINT: behind a shell the tests ignore it, and their children would too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
def test_ctrl_c_and_sigterm_end_local_processes(tmp_path):
    python = tmp_path / "python"
    python.write_text(WAITS)
    python.chmod(0o755)
    command = ["bash", str(LAUNCH / "local_multiprocess.sh"), "2", "--port=9", f"--logs={tmp_path}", "--", "--flag"]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    log = tmp_path / "process_1.log"
    for number in (signal.SIGINT, signal.SIGTERM):
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as running:
            assert running.stdout.readline() == b"started\n"
            while not log.exists() or "started" not in log.read_text():
                time.sleep(0.05)
            time.sleep(0.2)  # bash must be inside `wait`: one that comes right before it is seen when the process ends
            running.send_signal(number)
            assert running.wait(timeout=15) == 75
        log.unlink()


@pytest.mark.parametrize("restarts", [0, 2])
def test_a_signal_to_a_script_is_one_to_what_it_runs_and_no_reason_to_start_it_again(tmp_path, restarts):
    (tmp_path / "env").write_text(WAITS)
    (tmp_path / "env").chmod(0o755)
    command = ["bash", str(LAUNCH / "gpu_workstation.sh"), f"--restarts={restarts}", "--", *FLAGS]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as running:
        assert running.stdout.readline() == b"started\n"
        time.sleep(0.2)  # as above
        running.terminate()
        assert running.wait(timeout=15) == 75
        assert running.stdout.read() == b""


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("local_multiprocess.sh", ("--dry-run",), "number of processes"),
        ("tpu_pod.sh", ("--name=a", "--zone=b"), "say create, install"),
        ("tpu_pod.sh", ("create", "--name=a", "--zone=b"), "--type is missing"),
        ("gke_xpk.sh", ("--cluster=a",), "--workload is missing"),
        ("slurm.sbatch", ("--dry-run",), "flags of mmrec_jax.main"),
        ("gpu_workstation.sh", ("--image=m", "--", "--config=x"), "--data is missing"),
    ],
)
def test_a_missing_option_is_named(script, arguments, said):
    code, lines, error = launch(script, *arguments)
    assert (code, lines) == (2, [])
    assert said in error


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_says_what_it_is_for_and_knows_its_options(script):
    code = subprocess.run(["bash", str(LAUNCH / script), "--help"], capture_output=True, text=True, check=True).stdout
    assert f"launch/{script}" in code
    assert launch(script, "--no-such-option")[0] == 2


def test_shellcheck_has_nothing_to_say():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not here")
    files = [str(LAUNCH / name) for name in (*SCRIPTS, "common.sh")]
    done = subprocess.run(["shellcheck", "-x", *files], capture_output=True, text=True, cwd=LAUNCH.parent)
    assert done.returncode == 0, done.stdout
