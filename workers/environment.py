"""What torch and transformers read from the environment when they are first imported: import this before them."""

from __future__ import annotations

import os

# No model is ever looked up on the network, and a tokenizer that forks threads per call costs more than it gains.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Threads that wait must sleep, not spin: with the processor shared, spinning threads keep the one they wait for from
# running (2 cores under load: 42 texts/s and 11 CPU seconds spinning, 305 texts/s and 2.2 CPU seconds sleeping).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
