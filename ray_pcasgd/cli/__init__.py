"""The command line."""

from ray_pcasgd.cli.app import main, run_command

__all__ = ["main", "run_command"]
