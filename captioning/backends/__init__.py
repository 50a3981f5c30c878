"""Back ends that run an image network faster on this processor, with the same results.

A network is a function of uint8 pixels (B, S, S, 3) that returns tensors (B, …), with fixed weights.
"""
