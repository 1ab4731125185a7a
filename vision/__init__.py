"""Pictures for LFM2-VL: tiling under a token budget, the vision tower, talk about pictures."""
