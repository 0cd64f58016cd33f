"""This broker beside its peers, on one machine, in turn, under a load generator in C that knows none of them."""
