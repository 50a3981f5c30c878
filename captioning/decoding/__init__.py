"""The decoding engine: greedy and beam search over any model that offers a `Stepper`."""
