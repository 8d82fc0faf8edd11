"""The mutating admission webhook: reviews each new pod and returns a patch that adds the sidecar."""
