"""The demo: a real shop's purchases through the whole pipeline, live. Also the driver behind live measurements.

``traffic`` makes the schedule, ``scoreboard`` counts what comes back, ``display`` shows it, ``runner`` runs it.
"""
