"""Public data sets in the contract: files of a source become items and interactions.

One module per data set; each offers ``load_*() -> Dataset``. ``stream_app.datasets.files`` writes any of them as
``items.jsonl`` and ``interactions.jsonl``, which is what ``tailrace produce`` reads.
"""
