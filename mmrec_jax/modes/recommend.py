"""Writes the top k of users of the data, or of raw histories of item ids."""

from __future__ import annotations

from pathlib import Path

from mmrec_jax.errors import ConfigError
from mmrec_jax.modes.run import Run


def recommend(
    run: Run, *, users: list[str], histories: str | None, k: int, exclude_seen: bool, out: str | None
) -> Path:
    """Recommends with the best checkpoint of the run's workdir; returns the file written.

    Raises:
        ConfigError: neither or both of users and histories are given.
    """
    from mmrec_jax.serving.recommendations import read_histories, write_recommendations
    from mmrec_jax.serving.recommender import Recommender

    if bool(users) == bool(histories):
        raise ConfigError("recommend needs either --users=ID,ID,... or --histories=FILE.")
    recommender = Recommender.of_run(run)
    if users:
        listed = recommender.recommend(users=users, k=k, exclude_seen=exclude_seen)
    else:
        listed = recommender.recommend(read_histories(Path(str(histories))), k=k, exclude_seen=exclude_seen)
    path = Path(out) if out else run.workdir / "recommendations.parquet"
    write_recommendations(listed, path)
    run.console.print(f"{listed['query'].n_unique()} lists of {k} items: {path}")
    return path
