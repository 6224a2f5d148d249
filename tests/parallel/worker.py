"""One process of a run over several: some steps and an evaluation, printed as JSON.

python -m tests.parallel.worker SHOP WORKDIR PORT PROCESSES PROCESS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax

from tests.parallel.runs import measured, shop_run


def main(shop: str, workdir: str, port: str, processes: str, process: str) -> None:
    jax.distributed.initialize(f"127.0.0.1:{port}", int(processes), int(process))
    assert len(jax.devices()) == 8
    assert len(jax.local_devices()) == 8 // int(processes)
    print(json.dumps(measured(shop_run(Path(shop), Path(workdir), (8, 1, 1)))))


if __name__ == "__main__":
    main(*sys.argv[1:])
