"""The admission webhook: the API server asks it about each new pod, and it answers with what to add."""
