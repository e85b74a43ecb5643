"""Amortised guides: one posterior per datum, all of them given by one sampler with a context."""
