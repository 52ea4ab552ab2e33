"""Methods, one a file. `make(encoder, **hyper_parameters) -> core.Method`.

A config names the module; names resolve by import, there is no registry.
"""
