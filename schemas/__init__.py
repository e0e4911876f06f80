"""The contracts of Tailrace: typed v1 messages, their validation, and the generated JSON Schema and AsyncAPI.

``schemas.messages`` holds the types, ``schemas.decode`` turns bytes into them at the edge (and says what is
wrong when it cannot), ``schemas.generate`` writes ``schemas/v1/*.json`` and ``schemas/asyncapi.json``.
"""
