"""Speed and live quality, measured on this machine: ``python -m benchmarks`` (``make bench``).

Every figure comes from the product as it is: real broker, real Redis, worker processes, all candidate sources.
Results are printed as a table and kept as JSON under ``benchmarks/results`` with machine, versions and commit.
"""
