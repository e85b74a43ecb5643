"""Recordings: a model, or the pieces of a training step, as graphs of tensor operations that are run in their place."""
