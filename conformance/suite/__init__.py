"""What the cases stand on: clients, servers, a Ray cluster, and the matrix."""
