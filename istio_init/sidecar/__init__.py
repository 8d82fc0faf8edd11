"""The sidecar's half: Envoy's bootstrap file and its process lifecycle."""
