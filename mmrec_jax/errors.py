"""Errors a user can cause. Each message says what was wrong, where, and what to do about it."""


class UserError(Exception):
    """Base of every error that a change of data, config or environment mends; shown without a traceback."""


class ConfigError(UserError):
    """A config key, value or combination that cannot work."""


class DataError(UserError):
    """An interaction log or catalogue that cannot be read as it is: names file and row."""


class EmptySplitError(DataError):
    """A split that holds no example."""


class UnknownItemError(DataError):
    """An item id that the catalogue does not have."""


class BackboneError(UserError):
    """A backbone that cannot be found, or whose weights do not fit its config."""


class StoreError(UserError):
    """A hidden-state store that is missing, incomplete or holds values that are not finite."""


class NotFiniteError(StoreError):
    """Hidden states that are not finite: names the items."""


class StoreMismatchError(StoreError):
    """A hidden-state store made with other settings than the config asks for: names each difference."""


class MissingModalityError(StoreError):
    """Items that have none of the modalities a model needs."""


class CheckpointError(UserError):
    """A checkpoint that is absent, corrupt, or of another system, width or set of modalities."""


class TrainingError(UserError):
    """Training that cannot go on (a loss or gradient that is not finite, a full disk)."""


class HostError(UserError):
    """A process of the run that came too late, fell silent, failed or is gone: names it and its host."""


class EvaluationError(UserError):
    """An evaluation whose scores are not finite, or a comparison of models on different examples."""


class PlanningError(UserError):
    """A topology that no compiler here knows, or a compiler that is not installed."""


class Preempted(BaseException):
    """The run was told to end (SIGTERM) and did. Nobody's mistake, and passed through by whoever handles those.

    Args:
        where: it ended, for the message.
        at_boundary: whether it was at a step boundary, as all processes of the run do at the same one.
    """

    def __init__(self, where: str, at_boundary: bool = False):
        super().__init__(where)
        self.at_boundary = at_boundary
