"""A service mesh on one machine: pods as network namespaces, a control plane, and a demo service."""
