"""`python -m greenorm demo`: real relational data, unchanged sync functions, and two ways of awaiting them."""
