"""Encoders (Flax Linen) behind one contract, and heads.

`encoder.apply(variables, x [b h w c], *, train, keep=None [b k], mask=None
[b n], attention_mask=None, layers=(), key=None [b])` returns `{"pooled": [b d],
"tokens": [b n d], "layers": ([b n d], ...)}` in float32. An encoder raises
ValueError for an argument that it cannot honour. Every module has `make(*,
variant, **options)`, and every encoder the fields `dtype`, of the computation,
and `axis_name`, the mapped axis over which batch norm takes its statistics
where the step is called inside `pmap` or `shard_map`. Those with batch norm
have `bn_groups` and `bn_strided` as well, as in `norm.BatchNorm`.

That is what the methods on pairs of views need. Those that hide patches read
also `patch`, `dim`, `heads`, `depth`, `pool`, `class_token` and `registers`, as
`vit.ViT` has them, and those of text `vocab`, `dim`, `positions` and `epsilon`,
as `bert.Bert` and `gpt.GPT`, whose parameters `token_embed` they share.
"""
