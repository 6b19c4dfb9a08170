"""Holding masks against human masks."""
