"""Tells what a run will need and how long it will take on machines that are not here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from mmrec_jax.config import RunConfig, resolve
from mmrec_jax.errors import ConfigError, PlanningError

if TYPE_CHECKING:
    from mmrec_jax.planning.shapes import Sizes

PLAN, PAGE = "plan.json", "plan.md"


def plan(config: ConfigDict | None, topology: str | None, workdir: str | Path | None, command: str) -> dict[str, Any]:
    """Compiles the programs of a config's run for a topology, prints what they need, and writes it to `plan.json` and
    `plan.md` in the workdir.

    Args:
        config: of the run.
        topology: such as `v5e:16x16`.
        workdir: None for `runs/<config's name>/plans/<topology>`.
        command: the command line, for the page.

    Returns:
        The content of `plan.json`.

    Raises:
        ConfigError: no config is given, or its mesh or batch does not fit the topology.
        PlanningError: an unknown topology, a compiler that is not installed, a backbone of which nothing is known, or
            no sizes: neither data nor `config.plan`.
    """
    from mmrec_jax.planning.topology import parse_topology, prepare_process

    if config is None:
        raise ConfigError("Name a config, such as --config=configs/pod.py.")
    if not topology:
        raise PlanningError("--mode=plan needs --topology, such as --topology=v5e:16x16 or --topology=cpu:8.")
    wanted = parse_topology(topology)
    prepare_process(wanted)  # before anything that uses JAX
    settings = resolve(config)

    from mmrec_jax.modes.run import terminal
    from mmrec_jax.modes.workdir import write_whole
    from mmrec_jax.planning.plan import make_plan
    from mmrec_jax.planning.report import as_page

    directory = Path(workdir) if workdir else Path("runs") / settings.name / "plans" / wanted.name.replace(":", "_")
    sizes = _sizes(settings, directory)
    smaller = wanted.smaller(settings.plan.compare) if settings.plan.compare else None
    made = make_plan(settings, wanted, sizes, smaller)
    page = as_page(made, command)
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / PLAN, json.dumps(made, indent=2))
    write_whole(directory / PAGE, page)
    console = terminal()
    console.print(page, soft_wrap=True)
    console.print(f"Written to {directory / PLAN} and {PAGE}.", soft_wrap=True)
    return made


def _sizes(config: RunConfig, workdir: Path) -> Sizes:
    """As `config.plan` says; of the config's data where it says nothing."""
    from mmrec_jax import experiment
    from mmrec_jax.planning.shapes import Sizes, chosen_sizes

    if config.plan.catalogue:
        return chosen_sizes(config)
    if not experiment.has_source(config):
        raise PlanningError(
            f"There is no data at {config.data.source} whose sizes could be taken: set plan.catalogue and plan.users, "
            "such as --config.plan.catalogue=1000000 --config.plan.users=1000000."
        )
    data = experiment.prepare_data(config, workdir)
    # Inputs of live backbones are sized by `plan.tokens`, so that no media are read.
    stream = experiment.training_stream(config, data)
    try:
        distinct, steps = stream.sizes()[-1]  # type: ignore[union-attr]  # without backbones it is the plain stream
    finally:
        stream.close()
    users = len(data.examples("test").targets)
    return Sizes(data.num_items, users, config.training.batch_size, config.model.length, distinct, steps)
