"""A fit by several processes: what each of them does of a step, a batch, a judgement, and what they agree on."""
