"""Memory a run will take, counted before it starts, and memory that is free."""
