"""Claims of the paper, measured: the statement, our result and its 95 % interval."""
