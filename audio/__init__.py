"""Speech for LFM2-Audio: continuous path in, discrete codes out, live conversation."""
