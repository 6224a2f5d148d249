"""A slice of TPU VMs by gcloud: what is called, and runs on stand-ins for its hosts that a broken connection does not
end."""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import pytest

from tests.parallel.scripts import FLAGS, LAUNCH, clean, heard, launch, stand_in

PLACE = ("--name=rec", "--zone=us-west4-a")
# Runs the shell command on the only host, whose home is another folder.
GCLOUD = """[[ $4 == ssh ]] || exit 0
command=${@: -1:1}
cd "$HOST" && HOME=$HOST exec bash -c "${command#--command=}"
"""
# Says its number of starts and flags, and ends as ENDS says; without ENDS, with 75 after SIGTERM.
PROGRAM = f"""#!{sys.executable}
import os, pathlib, signal, sys

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
starts = pathlib.Path(os.environ["HOST"], "starts")
starts.write_text(starts.read_text() + "x" if starts.exists() else "x")
print("start", len(starts.read_text()), sys.argv[4:], flush=True)
ends = os.environ.get("ENDS", "").split()
if ends:
    sys.exit(int(ends[len(starts.read_text()) - 1]))
sys.exit(75 if signal.sigtimedwait([signal.SIGTERM], 20) else 0)
"""


@pytest.fixture
def host(tmp_path):
    """The home of a host on which the checkout is installed, and the environment in which gcloud leads there."""
    home = tmp_path / "host"
    shutil.copytree(LAUNCH, home / "mmrec_jax" / "launch")
    stand_in(home / "venv" / "bin", "python", PROGRAM)
    return home, {**stand_in(tmp_path / "bin", "gcloud", GCLOUD), "HOST": str(home)}


def started(environment, *flags):
    """`run` in a process of its own, as soon as the program has said something."""
    command = ["bash", str(LAUNCH / "tpu_pod.sh"), "run", *PLACE, *flags, "--", *FLAGS]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": clean(environment)}
    running = subprocess.Popen(command, **options)
    assert running.stdout.readline() == f"start 1 {list(FLAGS)}\n"
    time.sleep(0.2)  # bash must be inside `wait`
    return running


def test_a_tpu_pod_is_made_set_up_used_and_given_back():
    place = ("--dry-run", *PLACE, "--project=p")
    of_gcloud = ["gcloud", "compute", "tpus", "tpu-vm"]
    where = ["--zone=us-west4-a", "--project=p"]
    made = launch("tpu_pod.sh", "create", *place, "--type=v5litepod-16", "--spot")[1]
    sizes = ["--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite", "--spot"]
    assert made == [[*of_gcloud, "create", "rec", *where, *sizes]]
    packed, copied, installed = launch("tpu_pod.sh", "install", *place)[1]
    assert packed[0] == "pack"
    assert copied[4:6] == ["scp", packed[1]]
    assert "[ -d venv ] || python3 -m uv venv" in installed[-1]  # a second installation finds the first one's
    (run,) = launch("tpu_pod.sh", "run", *place, "--", *FLAGS)[1]
    assert run[:-1] == [*of_gcloud, "ssh", "rec", *where, "--worker=all"]
    remote = shlex.split(run[-1].removeprefix("--command="))  # as the shell of a host reads it
    assert remote[:6] == ["cd", "mmrec_jax", "&&", "exec", "bash", "launch/tpu_host.sh"]
    assert remote[remote.index("-m") :] == ["-m", "mmrec_jax.main", *FLAGS]
    for action in ("follow", "stop"):
        (line,) = launch("tpu_pod.sh", action, *place)[1]
        assert line[-1] == f"--command=bash mmrec_jax/launch/tpu_host.sh {action}"
    assert launch("tpu_pod.sh", "delete", *place)[1] == [[*of_gcloud, "delete", "rec", *where, "--quiet"]]


def test_what_is_installed_is_the_checkout_as_it_lies_here(tmp_path):
    checkout = tmp_path / "checkout"
    shutil.copytree(LAUNCH, checkout / "launch")
    for name in ("committed.py", "removed.py", ".gitignore"):
        (checkout / name).write_text("runs/\n")
    git = ["git", "-C", str(checkout), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *command], check=True)
    (checkout / "removed.py").unlink()
    (checkout / "committed.py").write_text("changed")
    (checkout / "my config.py").write_text("new")
    (checkout / "runs").mkdir()
    (checkout / "runs" / "large").write_text("ignored")
    keeps = f'if [[ $4 == scp ]]; then cp "$5" {tmp_path}/kept.tar.gz; fi'
    environment = clean(stand_in(tmp_path / "bin", "gcloud", keeps))
    subprocess.run(["bash", str(checkout / "launch" / "tpu_pod.sh"), "install", *PLACE], env=environment, check=True)
    with tarfile.open(tmp_path / "kept.tar.gz") as archive:
        names = {name.removeprefix("./") for name in archive.getnames()}
        assert archive.extractfile("committed.py").read() == b"changed"
    assert {"my config.py", "launch/tpu_host.sh"} <= names
    assert not {"removed.py", "runs/large"} & names


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_a_run_is_one_to_its_hosts(host, number):
    with heard(), started(host[1], "--restarts=2") as running:
        running.send_signal(number)
        assert running.wait(timeout=20) == 75
        assert running.stdout.read() == ""  # it was not started again


def test_a_run_that_lost_a_host_is_started_again(host):
    code, lines, said = launch("tpu_pod.sh", "run", *PLACE, "--restarts=2", "--", *FLAGS, **host[1], ENDS="69 75 2 0")
    assert code == 2
    assert [line[:2] for line in lines] == [["start", "1"], ["start", "2"], ["start", "3"]]
    assert said.count("again, from the last checkpoint") == 2


def test_a_broken_connection_ends_nothing_and_the_run_can_be_followed_and_stopped(host):
    home, environment = host
    with heard(), started(environment) as running:
        running.kill()
    program = (home / "mmrec_jax_runs" / "last" / "pid").read_text().strip()
    assert subprocess.run(["kill", "-0", program]).returncode == 0
    code, _, said = launch("tpu_pod.sh", "run", *PLACE, "--", *FLAGS, **environment)
    assert (code, "a run is going on here" in said) == (2, True)
    assert launch("tpu_pod.sh", "stop", *PLACE, **environment)[0] == 0
    code, lines, _ = launch("tpu_pod.sh", "follow", *PLACE, **environment)
    assert (code, [line[:2] for line in lines]) == (75, [["start", "1"]])


def test_a_command_that_gcloud_repeats_starts_nothing_twice(host):
    home, environment = host
    command = ["bash", str(home / "mmrec_jax/launch/tpu_host.sh"), "start", "one", str(home / "venv/bin/python"), "-u"]
    ends = clean({**environment, "HOME": str(home), "ENDS": "69 0"})
    for _ in range(2):
        done = subprocess.run(command, env=ends, capture_output=True, text=True, timeout=30)
        assert (done.returncode, done.stdout) == (69, "start 1 []\n")


def test_a_host_that_was_started_anew_has_lost_its_run(host):
    home, environment = host
    last = home / "mmrec_jax_runs" / "last"
    last.mkdir(parents=True)
    gone = subprocess.Popen(["true"])
    gone.wait()
    (last / "pid").write_text(str(gone.pid))
    (last / "log").write_text("a line\n")
    assert launch("tpu_pod.sh", "follow", *PLACE, **environment)[:2] == (69, [["a", "line"]])
