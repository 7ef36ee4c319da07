"""What the server offers over HTTP beside A2A: the admin API, metrics, and how bodies are parsed."""
