"""The Kubernetes side: manifests, injection, the webhook, and whether both halves of a pod agree."""
