"""Theory: closed forms of the seed papers' models and the experiments on them."""
