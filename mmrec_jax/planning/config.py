"""The planning part of the config: sizes that shapes follow from where there is no data yet."""

from __future__ import annotations

from dataclasses import dataclass, fields

from mmrec_jax.errors import ConfigError

PROGRAMS = ("training", "evaluation", "extraction")


@dataclass(frozen=True)
class PlanConfig:
    """How large the data will be. Nothing but `--mode=plan` reads it.

    Attributes:
        catalogue: items of it; 0 takes this and all other sizes from the config's data, which must be there then.
        users: to be evaluated.
        distinct: items that a training batch names; 0 is as many as it can: every event another item.
        steps: positions of a training batch that have a target; 0 is as many as it can: no history is short.
        tokens: of a text, on average; 0 is `max_tokens`. Texts of live backbones share rows.
        history: items that a user to be evaluated already had, which are masked in the ranking.
        programs: what to plan, of `PROGRAMS`; training is always planned.
        price: of a chip-hour, in any currency; 0 where none is given.
        compare: chips of the smaller slice that the step is compared with; 0 compares with none.
    """

    catalogue: int = 0
    users: int = 0
    distinct: int = 0
    steps: int = 0
    tokens: int = 0
    history: int = 32
    programs: tuple[str, ...] = PROGRAMS
    compare: int = 16
    price: float = 0.0

    def __post_init__(self) -> None:
        unknown = sorted(set(self.programs) - set(PROGRAMS))
        if unknown:
            raise ConfigError(f"plan.programs: {', '.join(unknown)} unknown; choose from {', '.join(PROGRAMS)}.")
        for field in fields(self):
            if field.name != "programs" and not getattr(self, field.name) >= 0:
                raise ConfigError(f"plan.{field.name}={getattr(self, field.name)}: must not be negative.")
        if self.catalogue and not self.users:
            raise ConfigError("plan.catalogue is set, and plan.users is not: say how many users there will be, too.")
