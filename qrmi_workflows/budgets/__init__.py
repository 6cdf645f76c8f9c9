"""Budgets: what tasks are expected to take, what they have taken, and what is left."""
