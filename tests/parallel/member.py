"""A process of a small run: meets the others, takes steps with a collective in each, and parts from them."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
import traceback
from typing import Any

from mmrec_jax.errors import ConfigError, HostError, Preempted
from mmrec_jax.parallel.environment import from_flags
from mmrec_jax.parallel.preemption import REQUEST
from mmrec_jax.parallel.start import joined


def main(count: int, index: int, port: int, timeout: float, steps: int, mishap: str = "") -> int:
    """Takes so many steps unless something comes between: the exit code, as that of the command line.

    Args:
        count, index: of the processes.
        port: of the first one.
        timeout: see `parallel.start.joined`.
        steps: to take.
        mishap: what happens to this process: "flags" (other ones than the others'), "mistake", "hang",
            "stuck" (the main thread alone).
    """
    apart, taken = threading.Event(), 0
    group = from_flags(f"127.0.0.1:{port}", count, index)
    stuck = 3.0 if mishap else 1000.0
    argv = ["member", "--flag=other" if mishap == "flags" else "--flag=same"]
    try:
        with REQUEST.heard(), joined(group, timeout, argv, apart, stuck):
            import jax
            import numpy as np
            from jax.sharding import AxisType, NamedSharding, PartitionSpec

            mesh = jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,))
            split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
            add = jax.jit(lambda x: x.sum(), out_shardings=whole)
            with REQUEST.at_boundaries():
                for step in range(steps):
                    time.sleep(0.003 * (index + 1))
                    total = add(jax.make_array_from_process_local_data(split, np.full((1,), step, np.float32)))
                    assert float(total) == count * step
                    taken = step + 1
                    if step == 3:
                        print("stepping", flush=True)
                    if step == 10 and mishap == "mistake":
                        raise ConfigError("a mistake of one")
                    if step == 10 and mishap == "stuck":
                        time.sleep(1000)
                    if step == 10 and mishap == "hang":
                        os.kill(os.getpid(), signal.SIGSTOP)
                    if REQUEST.boundary():
                        raise Preempted("here", at_boundary=True)
            code = 0
    except Preempted:
        code = 75
    except ConfigError:
        code = 2
    except ValueError as error:  # as a collective fails that has lost a process
        print(error, file=sys.stderr)
        code = 1
    except HostError as error:
        print(f"HostError: {error}", file=sys.stderr)
        code = 69
    print(f"taken {taken}", flush=True)
    if not apart.is_set():
        atexit._run_exitfuncs()  # JAX's own way out, which a forked process would pass over
    return code


def run(said: tuple[str, str], *arguments: Any) -> None:
    """A forked process: writes to two files what it says on standard output and error, and ends."""
    for number, path in enumerate(said, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ["XLA_FLAGS"] = ""
    code = 1
    try:
        code = main(*arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
