"""Gathering policies of today against ASGD, A2CiD2 against AD-PSGD at twice the rate, YellowFin under delay."""
