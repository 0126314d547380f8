"""Training a network: the loop and the small functions that it is made of."""
