"""Parsl providers whose blocks hold a QPU, one file per scheduler."""
