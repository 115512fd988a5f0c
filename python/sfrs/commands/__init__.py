"""Commands of ``sfrs``, one module each with ``register(app)``."""
