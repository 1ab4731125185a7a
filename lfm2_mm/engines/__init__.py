"""Implementations of lfm2_mm.engine.Engine, each imported when it is asked for."""
