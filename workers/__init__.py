"""The encoder pool: separate processes, one per device, that turn text into vectors.

Read in this order: ``models`` (which model, which vector space; ``folders``, ``layout`` and ``checkpoint`` read its
files), ``texts``, ``transformer``, ``devices`` and ``head`` (the computation) or ``multilingual`` (another one),
``process`` (the loop of one encoder process) and ``lanes`` (its threads), ``frames`` (what goes over the socket),
``child`` (one process seen from the parent), ``driver`` (one process kept busy), ``waiting`` and ``batching`` (what is
encoded next), ``pool`` (all of it behind one ``encode``; ``vector_pool`` is what callers see of it).

Only ``workers.transformer``, ``workers.head``, ``workers.images`` and ``workers.devices`` import torch. The package
itself imports nothing: an encoder process starts faster.
"""
