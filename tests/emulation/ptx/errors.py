"""The two exceptions of the executor."""


class PTXError(RuntimeError):
    """The PTX text cannot be executed, or executing it did something a GPU must not do."""


class LaneError(Exception):
    """What a lane did wrong in the current instruction; the scheduler makes of it a PTXError that says where."""

    def __init__(self, message: str, lane: int | None = None):
        super().__init__(message)
        self.message = message
        self.lane = None if lane is None else int(lane)
