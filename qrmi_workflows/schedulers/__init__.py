"""Schedulers that grant QPUs: one file each."""
