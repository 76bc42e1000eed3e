"""Trainers. `python -m promptadapt_core.train sft --help` shows the settings."""
