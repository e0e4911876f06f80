"""Derived state made again from the topics it derives from, in place, while the owners go on serving."""
