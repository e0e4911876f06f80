"""Tailrace: a streaming recommender. Events go into Kafka, a current slate for every user comes out of it."""

__version__ = "0.1.0"
