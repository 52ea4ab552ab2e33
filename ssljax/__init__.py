"""ssljax: self-supervised learning in JAX.

Nothing is imported eagerly: `from ssljax import core` brings jax and optax and
nothing else.
"""

__version__ = "0.2.0"
