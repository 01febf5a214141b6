"""The broker: transports for SQLite files and Redis, and what becomes of messages and connections that are broken."""
