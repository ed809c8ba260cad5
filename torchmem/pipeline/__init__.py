"""Pipelines: commands that feed each other, run once for each content of what they read. See docs/pipeline.md."""
