"""The Kubernetes side: manifests, injection, the admission webhook, and consistency checks between a pod's two halves."""
