"""Starting a larger model from the parameters of a finished smaller one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import numpy as np

from mmrec_jax.errors import CheckpointError
from mmrec_jax.training.trees import like, named_leaves
from mmrec_jax.types import Params


@dataclass(frozen=True)
class WarmStartReport:
    """Where each parameter of a warm-started model came from.

    Attributes:
        restored: taken from the old model as they are.
        grown: made from the old ones by a rule, because their shape depends on what was added.
        new: freshly initialised.
    """

    restored: tuple[str, ...]
    grown: tuple[str, ...]
    new: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{len(self.restored)} parameters restored, "
            f"{len(self.grown)} grown ({', '.join(self.grown) or 'none'}), "
            f"{len(self.new)} new ({', '.join(self.new) or 'none'})"
        )


def warm_start(
    old: Params,
    new: Params,
    grow: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] | None = None,
) -> tuple[Params, WarmStartReport]:
    """Puts every parameter of a finished model into a freshly initialised one that has more.

    Args:
        old: parameters of the finished model.
        new: fresh parameters of the model to train; not changed.
        grow: parameter path -> rule that makes a new value from (old, fresh) where the shape depends on what
            was added, such as the weights of a gate over all modalities.

    Returns:
        Parameters in the structure of `new`, and where each came from.

    Raises:
        CheckpointError: an old parameter has no place in the new model or another shape; all of them are
            named.
    """
    grow = grow or {}
    before, fresh = named_leaves(old), named_leaves(new)
    problems = [f"{name}: the new model has no such parameter" for name in before if name not in fresh]
    problems += [f"{name}: a rule to grow it, but no such parameter" for name in grow if name not in fresh]
    result, restored, grown = dict(fresh), [], []
    for name in (name for name in before if name in fresh):
        value = np.asarray(before[name])
        if name in grow and value.shape != fresh[name].shape:
            value = np.asarray(grow[name](value, np.asarray(fresh[name])))
            grown.append(name)
        else:
            restored.append(name)
        if value.shape != fresh[name].shape:
            problems.append(f"{name}: shape {list(before[name].shape)}, the new model wants {list(fresh[name].shape)}")
        result[name] = value.astype(fresh[name].dtype)
    if problems:
        raise CheckpointError(
            "Cannot warm-start: every old parameter must find its place.\n  "
            + "\n  ".join(problems)
            + "\nUse a config that differs from the checkpoint's only by what it adds."
        )
    report = WarmStartReport(tuple(restored), tuple(grown), tuple(name for name in fresh if name not in before))
    return jax.tree.map(np.array, like(new, result)), report
