"""What `make bench` runs. Each module measures one thing and prints a table; none of them is a test."""
