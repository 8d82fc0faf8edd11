"""The init container's half: settings → plan → text, kernel, explanation."""
