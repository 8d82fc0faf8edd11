"""The only part that changes a kernel: an engine, and the backends through which it reads and writes."""
