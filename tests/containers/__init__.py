"""The shipped compose file and images on a real engine: `make test-containers`."""
