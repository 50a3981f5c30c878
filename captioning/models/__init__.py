"""The captioning models, and how they are made, saved and loaded."""
