"""An image network on the fastest back end of this chip: the same numbers, sooner.

A network is a function of uint8 pixels (B, S, S, 3) that gives tensors (B, …), its weights fixed.
Knows neither captioners nor what the network sees.
"""
