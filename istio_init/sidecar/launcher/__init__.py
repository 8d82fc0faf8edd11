"""Runs Envoy: starts and supervises it, hot-restarts it when its certificate changes, and drains it before it stops."""
