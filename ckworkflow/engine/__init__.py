"""The engine: start, claim and record, continuations, recovery."""
