"""`process_pool`: an executor whose workers are rented machines, and the functions that travel to them."""
