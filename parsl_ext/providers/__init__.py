"""Parsl providers whose blocks hold a QPU: one file for each scheduler."""
