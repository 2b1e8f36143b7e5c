"""MLX, imported when first used: the limit's guard, loading, measuring, the device thread.

The only part that imports mlx and mlx_lm. It carries out what `scheduling` decides.
"""
