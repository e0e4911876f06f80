"""Faults on purpose: real processes, a seeded schedule of what goes wrong, and what it amounts to at the end.

Read in this order: ``stream`` (what is sent), ``schedule`` (what goes wrong, and when), ``pipeline`` (the processes),
``faults`` (how it is done to them; ``proxy`` and ``clock`` are its tools), ``outcome`` (what two runs are compared by),
``run`` (all of it).
"""
