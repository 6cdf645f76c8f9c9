"""Stages of several jobs: the keeper that holds a stage's lease, and the jobs around it."""
