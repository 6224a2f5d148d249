"""The batch script of SLURM: the step that it starts, and after which ends of its tasks it queues itself again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.parallel.scripts import FLAGS, LAUNCH, clean, launch, stand_in

# Runs the command that comes after its options as each of the tasks, and ends with the highest of their codes; a task
# that is to end with "killed" leaves no code, and one with "never" is not started.
SRUN = f"""#!{sys.executable}
import json, os, subprocess, sys

command = sys.argv[1:]
while command[0].startswith("--"):
    command.pop(0)
codes = []
for task, end in enumerate(json.loads(os.environ["ENDS"])):
    if end in ("killed", "never"):
        codes.append(137 if end == "killed" else 1)
        continue
    environment = {{**os.environ, "SLURM_PROCID": str(task), "END": str(end)}}
    codes.append(subprocess.run(command, env=environment).returncode)
sys.exit(max(codes))
"""

# Ends with 75 after SIGTERM.
ENDED = f"""#!{sys.executable}
import signal

signal.signal(signal.SIGTERM, lambda *_: exit(75))
print("on", flush=True)
signal.sigtimedwait([signal.SIGUSR1], 20)
"""


@pytest.fixture
def job(tmp_path):
    """Runs the script as a job whose tasks end so: its code, and what it told SLURM."""
    stand_in(tmp_path / "bin", "srun", SRUN)
    stand_in(tmp_path / "bin", "python", 'exit "$END"')
    path = stand_in(tmp_path / "bin", "scontrol", 'echo "$@"')

    def run(*ends, flags=(), **environment):
        tasks = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": str(len(ends)), "ENDS": json.dumps(ends)}
        code, said, error = launch("slurm.sbatch", *flags, "--", *FLAGS, cwd=tmp_path, **path, **tasks, **environment)
        assert [part.name for part in tmp_path.iterdir()] == ["bin"]  # no file of codes is left
        return code, said == [["requeue", "17"]], error

    return run


def test_a_slurm_job_is_one_task_a_node(tmp_path):
    code, (line,), _ = launch("slurm.sbatch", "--dry-run", "--", *FLAGS, cwd=tmp_path, SLURM_CPUS_PER_TASK="32")
    assert code == 0
    assert line[:4] == ["srun", "--kill-on-bad-exit=0", "--wait=60", "--cpus-per-task=32"]
    assert line[line.index("python") :] == ["python", "-u", "-m", "mmrec_jax.main", *FLAGS]
    head = (LAUNCH / "slurm.sbatch").read_text()
    for option in ("--ntasks-per-node=1", "--signal=TERM@180", "--requeue"):
        assert f"#SBATCH {option}\n" in head
    assert list(tmp_path.iterdir()) == []


def test_a_container_sees_the_folder_of_the_job_and_what_is_mounted(tmp_path):
    options = ("--dry-run", "--image=m.sqsh", "--mounts=/scratch:/scratch,/d:/data", "--")
    line = launch("slurm.sbatch", *options, *FLAGS, cwd=tmp_path)[1][0]
    mounts = f"--container-mounts={tmp_path}:{tmp_path},/scratch:/scratch,/d:/data"
    assert {"--container-image=m.sqsh", mounts, f"--container-workdir={tmp_path}"} <= set(line)


@pytest.mark.parametrize(
    ("ends", "code", "again"),
    [
        ((0, 0, 0), 0, False),
        ((75, 75, 75), 75, True),
        ((69, 69, "killed"), 69, True),
        ((69, 137, 69), 69, True),
        ((69, 134, 69), 69, True),
        ((69, 2, 69), 2, False),
        ((69, 69, 1), 1, False),
        ((130, 69, 69), 130, False),
        (("never", "never"), 1, False),
        (("killed", "killed"), 69, True),
    ],
)
def test_a_job_goes_back_into_the_queue_after_lost_and_ended_tasks_and_not_after_a_mistake_of_one(
    job, ends, code, again
):
    assert job(*ends)[:2] == (code, again)


def test_a_job_goes_back_so_often_and_no_more(job):
    assert job(75, flags=("--restarts=2",), SLURM_RESTART_COUNT="1")[:2] == (75, True)
    code, again, error = job(75, flags=("--restarts=2",), SLURM_RESTART_COUNT="2")
    assert (code, again) == (75, False)
    assert "after 2 restarts: not queued again" in error


def test_a_task_that_is_told_to_end_leaves_its_code_though_its_shell_is_told_too(tmp_path):
    """SLURM sends SIGTERM to all processes of a step."""
    task = launch("slurm.sbatch", "--dry-run", "--", *FLAGS, cwd=tmp_path)[1][0]
    shell = task[task.index("-c") + 1]
    path = stand_in(tmp_path, "python", ENDED)
    command = ["bash", "-c", shell, "task", str(tmp_path), "python"]
    environment = clean({**path, "SLURM_PROCID": "1"})
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, start_new_session=True) as running:
        assert running.stdout.readline() == b"on\n"
        time.sleep(0.1)
        os.killpg(running.pid, signal.SIGTERM)
        assert running.wait(timeout=15) == 75
    assert (tmp_path / "1").read_text() == "75\n"
