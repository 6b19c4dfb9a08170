"""Prefect tasks, one file a stage: retries, limits, progress, artifacts."""
