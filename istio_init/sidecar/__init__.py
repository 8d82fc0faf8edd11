"""The sidecar's half: Envoy's bootstrap file and Envoy's life."""
