"""Keys of a config's section that its other values leave without a reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from mmrec_jax.errors import ConfigError


def refuse(section: str, config: Any, unread: Mapping[str, str]) -> None:
    """Makes sure that nothing is set that nobody reads.

    Args:
        section: its name, for the error.
        config: a dataclass whose fields all have defaults.
        unread: key -> what it means nothing to.

    Raises:
        ConfigError: such a key has another value than its default; all of them are named.
    """
    set_ = [field for field in fields(config) if field.name in unread and getattr(config, field.name) != field.default]
    if set_:
        raise ConfigError(
            "\n".join(
                f"{section}.{field.name}={getattr(config, field.name)!r} means nothing to {unread[field.name]}. "
                f"Leave it at {field.default!r}."
                for field in set_
            )
        )
