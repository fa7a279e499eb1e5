"""The device mesh and its sharding rules; runs of several processes."""
