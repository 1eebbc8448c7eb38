"""Text encoders behind the engine's prompt interface, one file each."""
