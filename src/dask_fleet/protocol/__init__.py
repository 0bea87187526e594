"""What crosses between server, agent and worker process: small msgpack frames, never a pickle."""
