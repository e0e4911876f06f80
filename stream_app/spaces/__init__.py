"""Vector spaces derived from a model's: what is served instead of the raw embeddings."""
