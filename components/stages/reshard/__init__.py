"""Write a mixture out as the training set: new tars of the pool's own image bytes with the chosen texts."""
