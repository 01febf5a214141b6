"""The process: its runtime, pools, clock and heartbeat, and how it starts and ends."""
