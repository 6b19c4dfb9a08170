"""Procedural scenes with exact masks: endless training data whose ambiguity is real and known."""

from engine.scenes.scene import Scene, SceneMask, make_scene

__all__ = ["Scene", "SceneMask", "make_scene"]
