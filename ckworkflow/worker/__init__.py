"""The worker: its settings and wiring, and its rooms: `broker`, `process` and `steps`."""
