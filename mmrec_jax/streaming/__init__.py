"""Streams of interactions: windows, arrivals, and a model that is trained on one after another."""
