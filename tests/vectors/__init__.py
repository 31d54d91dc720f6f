"""Golden vectors from the slow reference, and the tests that hold the product to them."""
