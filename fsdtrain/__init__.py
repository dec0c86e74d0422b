"""Train camera-only driving perception from fleet video through a backend interface."""
