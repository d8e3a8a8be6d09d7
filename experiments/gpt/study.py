"""The runs of the study: one GPT by each method."""

from pathlib import Path

from experiments.late_methods import METHODS, jobs_of, measure

__all__ = ["HERE", "METHODS", "jobs_of", "measure"]

HERE = Path(__file__).parent
