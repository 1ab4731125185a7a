"""The parts of a speech model in one place: ears, backbone, mouth. Knows modules, no files."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from audio.config import AudioConfig
from audio.depth import DepthTransformer, FrameEmbedding
from audio.encoder import AudioEncoder
from lfm2_mm.backbone import Backbone


class SpeechModel(nn.Module):
    """What hears (`ears`), thinks (`backbone`) and speaks (`depth`; `frames` hears itself)."""

    def __init__(
        self,
        config: AudioConfig,
        backbone: Backbone,
        ears: AudioEncoder,
        frames: FrameEmbedding,
        depth: DepthTransformer,
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone, self.ears, self.frames, self.depth = backbone, ears, frames, depth

    @classmethod
    def new(cls, config: AudioConfig, *, seed: int = 0) -> SpeechModel:
        """A speech model with random weights, ready to be trained."""
        torch.manual_seed(seed)
        backbone = Backbone.new(config.backbone, seed=seed)
        model = cls(
            config, backbone, AudioEncoder(config), FrameEmbedding(config), DepthTransformer(config)
        )
        with torch.no_grad():
            for part in (model.frames, model.depth):
                for name, parameter in part.named_parameters():
                    if name.endswith("bias"):
                        parameter.zero_()
                    elif parameter.dim() > 1:
                        parameter.normal_(0.0, parameter.shape[-1] ** -0.5)
        return model

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    def logits(self, hidden: Tensor) -> Tensor:
        """Text logits: hidden (…, hidden_size) -> (…, vocab_size)."""
        return self.backbone.logits(hidden)
