"""Workers and their servers: the same shape as peers, a server's neighbors being its workers."""
