"""Video VAEs behind the engine's codec interface, one file each."""
