"""The decoding engine: greedy search, beam search and sampling over any model that offers a `Stepper`."""
