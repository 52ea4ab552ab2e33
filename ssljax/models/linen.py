"""Flax modules as pure functions of (params, batch_stats)."""


def init(module, rng, *args, **kwargs):
  """Returns (params, batch_stats), where batch_stats may be empty."""
  variables = module.init(rng, *args, train=False, **kwargs)
  return variables.get("params", {}), variables.get("batch_stats", {})


def apply(module, params, batch_stats, *args, train, **kwargs):
  """Returns (outputs, new batch_stats); they change only where `train`."""
  variables = {"params": params, "batch_stats": batch_stats}
  if not (train and batch_stats):
    return module.apply(variables, *args, train=train, **kwargs), batch_stats
  outputs, changed = module.apply(
    variables, *args, train=True, mutable=["batch_stats"], **kwargs
  )
  return outputs, changed["batch_stats"]


def embed(encoder):
  """Returns a method's `embed`: by the encoder that learns, of the first view.

  Args:
    encoder: a module under the encoder contract, as `params["encoder"]` has it.
  """

  def first_view(params, method_state, batch):
    stats = method_state["batch_stats"]["encoder"]
    x = batch["views"][:, 0]
    out, _ = apply(encoder, params["encoder"], stats, x, train=False)
    return {"pooled": out["pooled"], "tokens": out["tokens"]}

  return first_view
