"""LFM2 in Python. The floor: types, checkpoints, backbone, engines; nothing heavy is imported."""

from lfm2_mm.errors import LfmError
from lfm2_mm.types import (
    Audio,
    AudioChunk,
    Done,
    Image,
    Message,
    Progress,
    Sampling,
    Text,
    TextDelta,
    Usage,
)

__version__ = "0.1.0"
__all__ = [
    "Audio",
    "AudioChunk",
    "Done",
    "Image",
    "LfmError",
    "Message",
    "Progress",
    "Sampling",
    "Text",
    "TextDelta",
    "Usage",
    "__version__",
]
