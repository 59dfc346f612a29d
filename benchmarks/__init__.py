"""How fast it is: ratios within one run, with commit, hardware and versions beside them."""
