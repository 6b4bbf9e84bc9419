"""The exceptions that fastformer raises for a mistake that its user can mend.

Every message says what was given, what is allowed, where, and what to do. Python callers catch
them as `ValueError` and `TypeError`; the command line prints the message and exits with code 2.
"""


class FastformerError(Exception):
    """Base of all errors that are the user's to mend."""


class InvalidValueError(FastformerError, ValueError):
    """A value, shape or id that is not allowed."""


class InvalidTypeError(FastformerError, TypeError):
    """A dtype or type that is not allowed."""


class NotForwardedError(FastformerError, AttributeError):
    """What only a forward pass leaves behind was asked for before there was one."""


class ReadOnlyError(FastformerError, AttributeError):
    """An attribute that cannot be set was set."""


class OtherThreadError(FastformerError, RuntimeError):
    """Two threads of Python used a layer in turns that would mix up their numbers."""


class MissingLibraryError(FastformerError, ImportError):
    """An extra of fastformer is needed that is not installed."""


class EquivalenceError(FastformerError, AssertionError):
    """Two ways of computing the same thing gave results that differ."""


class ForkedProcessError(FastformerError, RuntimeError):
    """A kernel was called in a process that was forked in a way that its threads do not survive."""


class RunError(InvalidValueError):
    """A run directory that is missing, already there, damaged, or of another version."""


class CheckpointError(RunError):
    """A checkpoint file that is missing, damaged, or does not fit the model."""
