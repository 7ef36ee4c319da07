"""Who is asking, and for whom."""
