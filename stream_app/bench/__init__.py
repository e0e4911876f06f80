"""Benchmarks of the parts, in process: what ``tailrace bench`` runs.

They use the functions that run live, over a made-up shop of any size (:mod:`stream_app.bench.shop`). What is measured
through a broker is in ``benchmarks/`` beside the package.
"""
