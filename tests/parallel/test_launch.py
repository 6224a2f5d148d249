"""The launch scripts: what they would run, by their dry runs, and what they refuse."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.parallel.scripts import FLAGS, LAUNCH, clean, heard, launch, stand_in

SCRIPTS = ("tpu_pod.sh", "tpu_host.sh", "gke_xpk.sh", "slurm.sbatch", "gpu_workstation.sh", "local_multiprocess.sh")
WAITS = f"""#!{sys.executable}
import signal

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
print("started", flush=True)
raise SystemExit(75 if signal.sigtimedwait([signal.SIGTERM], 20) else 0)
"""


def test_processes_of_one_machine_differ_in_their_numbers_only():
    code, lines, _ = launch("local_multiprocess.sh", "3", "--dry-run", "--devices=4", "--port=900", "--", *FLAGS)
    assert code == 0
    assert lines[0] == ["export", "XLA_FLAGS= --xla_force_host_platform_device_count=4"]
    for index, line in enumerate(lines[1:]):
        places = ["--coordinator=127.0.0.1:900", "--processes=3", f"--process={index}"]
        assert line == ["python", "-m", "mmrec_jax.main", *FLAGS, *places]
    assert len(lines) == 4


def test_a_workload_of_gke_runs_the_same_flags():
    options = ("--dry-run", "--cluster=c", "--workload=w", "--image=gcr.io/p/m:tpu", "--zone=z")
    code, (line,), _ = launch("gke_xpk.sh", *options, "--device=v6e-256", "--slices=2", "--", *FLAGS)
    assert code == 0
    assert line[:3] == ["xpk", "workload", "create"]
    assert {"--device-type=v6e-256", "--num-slices=2", "--docker-image=gcr.io/p/m:tpu", "--zone=z"} <= set(line)
    command = shlex.split(line[-1].removeprefix("--command="))
    assert command == ["exec", "python", "-m", "mmrec_jax.main", *FLAGS]
    assert not any(word.startswith("--storage") for word in line)
    gpus = ("--device=h100-mega-80gb-8", "--slices=8", "--storage=shared")
    assert {"--num-nodes=8", "--storage=shared"} <= set(launch("gke_xpk.sh", *options, *gpus, "--", *FLAGS)[1][0])


def test_a_workload_of_gke_starts_again_after_the_exit_codes_of_a_lost_and_of_an_ended_process():
    options = ("--cluster=c", "--workload=w", "--image=i", "--device=v6e-256", "--restarts=3")
    line = launch("gke_xpk.sh", "--dry-run", *options, "--", *FLAGS)[1][0]
    assert {"--max-restarts=3", "--restart-on-exit-codes=69,75"} <= set(line)


@pytest.mark.parametrize(
    "word", ["a b", "(5, 10)", "it's", 'say "x"', "back\\slash", "('training',)", "", "$HOME", "*"]
)
def test_flags_are_quoted_for_bash_and_for_yaml_in_double_quotes(word):
    command = f'source {LAUNCH}/common.sh; quoted "$@"'
    text = subprocess.run(
        ["bash", "-c", command, "it", word, "next"], capture_output=True, text=True, check=True
    ).stdout
    assert '"' not in text
    # xpk writes it between double quotes: of the escapes that YAML has there, \xNN is the one that bash reads alike.
    assert re.fullmatch(r"(?:[^\\]|\\x[0-9a-f]{2})*", text)
    back = subprocess.run(["bash", "-c", f"printf '%s|' {text}"], capture_output=True, text=True, check=True).stdout
    assert back == f"{word}|next|"


def test_a_workstation_needs_no_connection():
    assert launch("gpu_workstation.sh", "--dry-run", "--gpus=0,1", "--", *FLAGS)[1] == [
        ["env", "JAX_PLATFORMS=cuda", "CUDA_VISIBLE_DEVICES=0,1", "python", "-m", "mmrec_jax.main", *FLAGS]
    ]
    (line,) = launch("gpu_workstation.sh", "--dry-run", "--image=m:gpu", "--data=/d", "--", *FLAGS)[1]
    assert line[:2] == ["docker", "run"]
    assert line[-3:] == ["m:gpu", *FLAGS]


def test_a_container_without_a_workdir_in_its_data_folder_is_told_so():
    options = ("--dry-run", "--image=m:gpu", "--data=/d", "--")
    assert "lost with the container" in launch("gpu_workstation.sh", *options, "--workdir=runs/a")[2]
    assert launch("gpu_workstation.sh", *options, "--workdir=/data/runs/a")[2] == ""


def test_a_workstation_starts_again_as_often_as_it_is_told(tmp_path):
    count = tmp_path / "count"
    path = stand_in(tmp_path, "env", f"echo x >> {count}\nexit 75")
    assert launch("gpu_workstation.sh", "--restarts=2", "--", *FLAGS, **path)[0] == 75
    assert count.read_text().count("x") == 3


def test_the_worst_end_of_local_processes_is_told(tmp_path):
    path = stand_in(tmp_path, "python", 'last="${@: -1}"\nset -- $ENDS\nshift "${last#--process=}"\nexit "$1"')
    for ends, code in (("0 0 0", 0), ("0 75 0", 75), ("69 2 69", 2), ("69 75 69", 69)):
        assert launch("local_multiprocess.sh", "3", "--port=9", "--", **path, ENDS=ends)[0] == code, ends


def test_ctrl_c_and_sigterm_end_local_processes(tmp_path):
    environment = clean(stand_in(tmp_path, "python", WAITS))
    command = ["bash", str(LAUNCH / "local_multiprocess.sh"), "2", "--port=9", f"--logs={tmp_path}", "--", "--flag"]
    log = tmp_path / "process_1.log"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    for number in (signal.SIGINT, signal.SIGTERM):
        with heard(), subprocess.Popen(command, env=environment, **pipes) as running:
            assert running.stdout.readline() == b"started\n"
            while not log.exists() or "started" not in log.read_text():
                time.sleep(0.05)
            time.sleep(0.2)  # bash must be inside `wait`: one that comes right before it is seen when the process ends
            running.send_signal(number)
            assert running.wait(timeout=15) == 75
        log.unlink()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("restarts", [0, 2])
def test_a_signal_to_a_script_is_one_to_what_it_runs_and_no_reason_to_start_it_again(tmp_path, restarts, number):
    environment = clean(stand_in(tmp_path, "env", WAITS))
    command = ["bash", str(LAUNCH / "gpu_workstation.sh"), f"--restarts={restarts}", "--", *FLAGS]
    with heard(), subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as running:
        assert running.stdout.readline() == b"started\n"
        time.sleep(0.2)  # as above
        running.send_signal(number)
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


@pytest.mark.parametrize("script", [*SCRIPTS, "common.sh"])
def test_arrays_that_may_be_empty_are_read_as_old_versions_of_bash_can(script):
    """Before 4.4 an empty one is an error under `set -u`; macOS has 3.2."""
    text = (LAUNCH / script).read_text()
    subprocess.run(["bash", "-n", str(LAUNCH / script)], check=True)
    for name in re.findall(r"(\w+)=\(\)", text):
        assert not re.search(rf'(?<!\+)"\$\{{{name}\[@\]\}}"', text), name


def test_images_are_made_of_what_docker_is_sent_and_name_their_platform():
    sent = (LAUNCH.parent / ".dockerignore").read_text().splitlines()
    assert sent[0] == "*"
    for kind in ("tpu", "gpu"):
        made = (LAUNCH / f"Dockerfile.{kind}").read_text()
        assert re.search(r"^ENV .*JAX_PLATFORMS=\w+$", made, re.MULTILINE)
        copied = [name for line in re.findall(r"^COPY (.*)$", made, re.MULTILINE) for name in line.split()[:-1]]
        assert "configs" in copied
        assert all(f"!{name}" in sent and (LAUNCH.parent / name).exists() for name in copied)


def test_shellcheck_has_nothing_to_say():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not here")
    files = [str(LAUNCH / name) for name in (*SCRIPTS, "common.sh")]
    done = subprocess.run(["shellcheck", "-x", *files], capture_output=True, text=True, cwd=LAUNCH.parent)
    assert done.returncode == 0, done.stdout
