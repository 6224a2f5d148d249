"""Writes the top k of users of the data, or of raw histories of item ids."""

from __future__ import annotations

from pathlib import Path

from mmrec_jax.errors import ConfigError
from mmrec_jax.modes.run import Run


def recommend(
    run: Run,
    *,
    users: list[str] | None = None,
    histories: str | None = None,
    k: int = 10,
    exclude_seen: bool = True,
    out: str | None = None,
) -> Path:
    """Recommends with the best checkpoint of the run's workdir; returns the file written.

    Raises:
        ConfigError: neither or both of users and histories are given, or k is larger than the catalogue.
        CheckpointError: no usable checkpoint.
    """
    from mmrec_jax.serving.recommendations import NAMED, check_ending, read_histories, write_recommendations
    from mmrec_jax.serving.recommender import Recommender

    if bool(users) == bool(histories):
        raise ConfigError("recommend needs either --users=ID,ID,... or --histories=FILE.")
    path = Path(out) if out else run.workdir / "recommendations.parquet"
    check_ending(path)  # before the catalogue is encoded
    given = read_histories(Path(histories)) if histories else None
    recommender = Recommender.of_run(run)
    listed = recommender.recommend(given, k=k, exclude_seen=exclude_seen, users=users or None)
    write_recommendations(listed, path)
    if recommender.skipped:
        run.console.print(f"{recommender.skipped} items of the histories are not in the catalogue and were left out.")
    if left := recommender.left_out:
        named = ", ".join(left[:NAMED]) + (", ..." if len(left) > NAMED else "")
        run.console.print(f"{len(left)} histories hold no item of the catalogue and have no list: {named}")
    run.console.print(f"{listed['query'].n_unique()} lists of up to {k} items: {path}")
    return path
