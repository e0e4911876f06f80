"""Mutated messages against every decoder: ``python -m tests.fuzz --messages 1000000 --seed 0``."""
