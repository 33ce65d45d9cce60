"""Each recorded tensor judged on its own inputs."""
