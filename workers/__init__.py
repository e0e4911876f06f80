"""The encoder pool: separate processes, one per device, that turn text into vectors.

Read in this order: ``models`` (which model, which vector space; ``folders``, ``layout`` and ``checkpoint`` read its
files), ``texts``, ``transformer``, ``devices`` and ``head`` (the computation) or ``multilingual`` (another one),
``process`` (the loop of one encoder process) and ``lanes`` (its threads), ``frames`` (what goes over the socket),
``child`` (one process seen from the parent), ``driver`` (one process kept busy), ``waiting`` and ``batching`` (what is
encoded next), ``pool`` (all of it behind one ``encode``; ``vector_pool`` is what callers see of it).

Only ``workers.transformer``, ``workers.head``, ``workers.images`` and ``workers.devices`` import torch. The package
itself imports nothing of that: an encoder process starts faster.
"""

import os

# What torch and transformers read when they are first imported, in this process and in those it starts: here, because
# this module comes before each of them.
# No model is ever looked up on the network, and a tokenizer that forks threads per call costs more than it gains.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Threads that wait must sleep, not spin: with the processor shared, spinning threads keep the one they wait for from
# running (2 cores under load: 42 texts/s and 11 CPU seconds spinning, 305 texts/s and 2.2 CPU seconds sleeping).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
