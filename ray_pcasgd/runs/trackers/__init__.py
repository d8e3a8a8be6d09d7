"""Callbacks that hand a run's settings, figures and events to an experiment tracker; its library is an extra."""
