"""Runs Envoy: starts it, watches over it, replaces it when its certificate changes, and ends it without a failed request."""
