"""Speed and live quality, measured on this machine: ``python -m benchmarks`` (``make bench``).

A thin runner of ``tailrace bench``, and what needs a data set: the encoder and live quality. Results are printed as a
table and kept as JSON under ``benchmarks/results`` with machine, versions, seed and commit.
"""
