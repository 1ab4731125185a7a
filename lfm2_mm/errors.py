"""What can go wrong. Each message says what was asked, what would be valid, what to do."""

from __future__ import annotations


class LfmError(Exception):
    """An error of the job. The command line prints it in one line and exits with 1."""


class UnknownCheckpoint(LfmError):
    """No checkpoint of this name, and no folder of this path."""


class CheckpointDamaged(LfmError):
    """Weights are missing, unexpected, truncated, or do not fit the configuration."""


class NotAvailable(LfmError):
    """The checkpoint is neither bundled nor cached, and the hub was not asked or did not answer."""


class MissingExtra(LfmError):
    """An optional library is not installed; the message gives the install command."""


class ContextExceeded(LfmError):
    """The conversation is longer than the checkpoint's context."""


class BadInput(LfmError):
    """A value, text, file or setting that cannot be used."""


class BeyondLimit(BadInput):
    """More than is taken: bytes, pixels, seconds, items."""


class Unreadable(BadInput):
    """A file that cannot be read or holds nothing readable."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"cannot read {path}: {reason}")
        self.reason = reason


class IndexMissing(LfmError):
    """No index at this path."""


class IndexMismatch(LfmError):
    """The index was made with another model or by a newer version."""


class IndexDamaged(LfmError):
    """Stored bytes do not fit what the manifest says."""


class IndexBusy(LfmError):
    """Another process is writing to the index."""


class BadPicture(BadInput):
    """A picture that cannot be read, is empty, or is beyond the stated limits."""


class PictureTooLarge(BadPicture, BeyondLimit):
    """A picture of more bytes or pixels than are decoded."""


class OverBudget(BadInput):
    """No plan for these pictures keeps to the token budget; `least` is the smallest that does."""

    def __init__(self, message: str, least: int) -> None:
        super().__init__(message)
        self.least = least
