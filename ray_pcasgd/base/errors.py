"""The two errors that the command line prints as lines; whoever catches them need not import what raises them."""


class SettingsError(ValueError):
    """Settings that cannot be run; the message has one line for each."""


class RunError(RuntimeError):
    """A run that started and could not be finished."""
