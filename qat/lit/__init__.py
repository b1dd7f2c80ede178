"""Lightning modules and callbacks: the update of the weights, exact resume, what is measured."""
