"""What leaves the server when a turn ends: memory writes and push notifications."""
