"""The command `retinue`."""
