"""The built-in suite as files (suite8/): base, experts, heads and images; and the verb that shows them."""
